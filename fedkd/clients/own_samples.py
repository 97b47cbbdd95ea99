"""Which of a client's training samples it trains on, and which it keeps apart: to stop, or to choose by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedkd.data.split import stratified_choice
from fedkd.plan.plan import Plan
from fedkd.plan.poisoned import round_half_up
from fedkd.randomness import numpy_generator

FEWEST = 2
"""With fewer samples kept apart a loss on them says nothing."""

HELD_OUT = 0.2
"""Share of them that is kept apart where something is chosen and the scenario says no other."""


@dataclass(frozen=True)
class OwnSamples:
    """Indices among a client's training samples, ascending; None is in both.

    Attributes:
        trained_on: [n − k] int64.
        kept_apart: [k] int64; empty: training does not stop early, and nothing is chosen or measured by them.
    """

    trained_on: np.ndarray
    kept_apart: np.ndarray

    def of(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples [n, …] and labels [n] that are trained on, as they are where that is all."""
        return (x[self.trained_on], y[self.trained_on]) if len(self.kept_apart) else (x, y)


def part_of_round(samples: int, part: int, parts: int, *, seed: int, client: int, task: int) -> np.ndarray:
    """Return the indices of the samples that one round of several trains on, where each is trained on once.

    Args:
        samples: Number of the task's samples.
        part: Which of the task's rounds it is, 0-based.
        parts: How many it has.
        seed: The scenario's seed.
        client: Client index.
        task: Place of the task in the client's order.

    Returns:
        Ascending int64; those of all rounds together are all samples, in parts as equal as can be.
    """
    order = numpy_generator(seed, "one-pass", client=client, task=task).permutation(samples)
    return np.sort(np.array_split(order, parts)[part])


def share_held_out(plan: Plan) -> float | None:
    """Return the share of its training samples that a client keeps apart to choose by; None: nothing is.

    It is the scenario's, or what its strategy measures clients on if that is more.
    """
    chooses = plan.scenario.fusion.own_prior == "auto" or plan.capabilities.trials > 0
    wanted = plan.scenario.training.held_out or (HELD_OUT if chooses else 0.0)
    return max(wanted, plan.capabilities.held_out_share) or None


def share_kept_apart(plan: Plan) -> float | None:
    """Return the share that a client with a network keeps apart, to choose or to stop by; None: nothing."""
    stopping = plan.scenario.training.early_stopping
    return max(share_held_out(plan) or 0.0, 0.0 if stopping is None else stopping.validation) or None


def train_on_all(samples: int) -> OwnSamples:
    """Return the indices of a client that keeps nothing apart."""
    return OwnSamples(np.arange(samples), np.arange(0))


def number_kept_apart(samples: int, share: float) -> int:
    """Return how many of a client's training samples are kept apart; 0 where it would be too few."""
    number = round_half_up(share * samples)
    return number if FEWEST <= number < samples else 0


def keep_apart(
    labels: np.ndarray, share: float, *, seed: int, client: int, task: int | None = None
) -> OwnSamples:
    """Draw the samples that a client keeps apart, so that every class keeps its share.

    Args:
        labels: [n] int64 labels of the client's training samples.
        share: Of them that is kept apart.
        seed: The scenario's seed.
        client: Client index.
        task: Index of the task whose samples these are; None: no stream.
    """
    number = number_kept_apart(len(labels), share)
    if number == 0:
        return train_on_all(len(labels))
    generator = numpy_generator(seed, "validation", client=client, task=task)
    chosen = stratified_choice(labels, number, generator)
    return OwnSamples(np.flatnonzero(~chosen), np.flatnonzero(chosen))
