"""A client's training samples, and those that it holds out for early stopping or choices."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.clients.draws import Draws
from fedkd.clients.poison import Poison
from fedkd.data import ClientData, stratified_choice
from fedkd.plan import Plan, round_half_up
from fedkd.randomness import numpy_generator

FEWEST = 2
"""Fewest held-out samples: a loss on fewer is meaningless."""

HELD_OUT = 0.2
"""Default share of held-out samples for a client's choices."""


@dataclass(frozen=True)
class TrainingSplit:
    """Indices `[n − k]` and `[k]` int64 among a client's training samples, ascending and disjoint."""

    trained_on: np.ndarray
    kept_apart: np.ndarray


def selection_holdout_share(plan: Plan) -> float | None:
    """Return the share of training samples that a client holds out for its choices; None: none."""
    chooses = plan.scenario.fusion.logit_adjustment == "auto" or plan.capabilities.trials > 0
    wanted = plan.scenario.training.held_out or (HELD_OUT if chooses else 0.0)
    return max(wanted, plan.capabilities.held_out_share) or None


def network_holdout_share(plan: Plan) -> float | None:
    """Return the share that a client with a network holds out, for choices or early stopping; None: none."""
    stopping = plan.scenario.training.early_stopping
    return max(selection_holdout_share(plan) or 0.0, 0.0 if stopping is None else stopping.validation) or None


def count_held_out(samples: int, share: float) -> int:
    """Return the number of held-out samples; 0 if it would be too small."""
    number = round_half_up(share * samples)
    return number if FEWEST <= number < samples else 0


def keep_apart(
    labels: np.ndarray, share: float, *, seed: int, client: int, task: int | None = None
) -> TrainingSplit:
    """Draw held-out samples by the labels `[n]` of a client's training samples, with class shares kept."""
    number = count_held_out(len(labels), share)
    if number == 0:
        return TrainingSplit(np.arange(len(labels)), np.arange(0))
    generator = numpy_generator(seed, "validation", client=client, task=task)
    chosen = stratified_choice(labels, number, generator)
    return TrainingSplit(np.flatnonzero(~chosen), np.flatnonzero(chosen))


class LocalSamples:
    """A client's samples of its present task, and the part that it trains on.

    Args:
        tasks: The client's data of every task; without a stream there is one.
        share: Share of held-out training samples; None: the client trains on all.

    Attributes:
        place: Place of the present task in the client's own `order`.
    """

    def __init__(
        self,
        plan: Plan,
        index: int,
        tasks: Sequence[ClientData],
        poison: Poison | None = None,
        share: float | None = None,
    ) -> None:
        self._plan, self._index, self._poison, self._share = plan, index, poison, share
        self._draws = Draws(plan.scenario.seed, index)
        self._in_stream = plan.scenario.continual is not None
        self.tasks = tasks
        self.order = plan.schedule.order(index) if self._in_stream else (0,)
        self.enter(0)

    def enter(self, place: int) -> None:
        """Move to the task at a place in the client's order."""
        self.place = place
        self.data = self.tasks[self.order[place]]

    def labels(self, data: ClientData | None = None) -> np.ndarray:
        """Return the labels for training: flipped ones for some poisoned clients."""
        data = data or self.data
        return data.train_y if self._poison is None else self._poison.labels(data.train_y, data.classes)

    def split(self, place: int | None = None) -> TrainingSplit:
        """Return the split of a task's training samples; None: of the present task's."""
        place = self.place if place is None else place
        seed, task = self._plan.scenario.seed, self.order[place] if self._in_stream else None
        return keep_apart(
            self._of(place).train_y, self._share or 0.0, seed=seed, client=self._index, task=task
        )

    def _of(self, place: int) -> ClientData:
        return self.data if place == self.place else self.tasks[self.order[place]]

    def trained_on(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples `[n, …]` and labels `[n]` of a task for training."""
        data, split = self._of(place), self.split(place)
        x, y = data.train_x, self.labels(data)
        return (x[split.trained_on], y[split.trained_on]) if len(split.kept_apart) else (x, y)

    def kept_apart(self, place: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the held-out samples `[k, …]` and labels `[k]`."""
        place = self.place if place is None else place
        data, rows = self._of(place), self.split(place).kept_apart
        return data.train_x[rows], self.labels(data)[rows]

    def rows(self, round: int) -> np.ndarray:
        """Return the indices of a round's training samples, ascending; a part in an online stream."""
        rows = self.split().trained_on
        continual = self._plan.scenario.continual
        online = continual is not None and continual.online
        return rows[self.part(round, len(rows))] if online else rows

    def part(self, round: int, samples: int) -> np.ndarray:
        """Return the indices of a round's samples, ascending, in a stream with a single pass.

        The rounds of a task share its samples out as evenly as possible.
        """
        schedule = self._plan.schedule
        part = schedule.rounds_into_task(self._index, round)
        parts = schedule.rounds_of_task(self._index, round)
        draw = numpy_generator(self._plan.scenario.seed, "one-pass", client=self._index, task=self.place)
        return np.sort(np.array_split(draw.permutation(samples), parts)[part])

    def work(self, epochs: int, round: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the samples, labels and epochs of a round's local training; less for a straggler."""
        x, y, rows = self.data.train_x, self.labels(), self.rows(round)
        if len(rows) != len(y):
            x, y = x[rows], y[rows]
        kept = self.straggle(round, [len(y)])
        return (x, y, epochs) if kept is None else (x[kept[0]], y[kept[0]], 1)

    def rows_of_work(self, round: int) -> np.ndarray:
        rows = self.rows(round)
        kept = self.straggle(round, [len(rows)])
        return rows if kept is None else rows[kept[0]]

    def straggle(self, round: int, sizes: Sequence[int]) -> list[np.ndarray] | None:
        """Draw a straggler's samples of sets of these sizes, indices ascending; None: not slow."""
        slow = self._plan.scenario.faults
        if slow.stragglers == 0.0:
            return None
        draw = self._draws.numpy("straggler", round)
        if draw.random() >= slow.stragglers:
            return None
        work = slow.straggler_work
        return [np.sort(draw.permutation(size)[: round_half_up(work * size)]) for size in sizes]
