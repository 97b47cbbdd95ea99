"""Clients that are hostile or absent: who it is, and what they do, derived from the seed.

Nothing is kept: every process that asks gets the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedkd.fusion.kinds import Kind
from fedkd.randomness import numpy_generator
from fedkd.scenario.schema import Scenario


@dataclass(frozen=True, eq=False)
class Poison:
    """What a poisoned client does.

    Args:
        kind: As in the scenario's `faults.poison`.
        victim: Class distribution `[C]` that an imitator feigns.
    """

    kind: Literal["random", "flipped", "imitation"]
    victim: np.ndarray

    def labels(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """Return the labels it trains on: C − 1 − y if they are flipped."""
        return classes - 1 - labels if self.kind == "flipped" else labels

    def corrupt(
        self, arrays: dict[str, np.ndarray], kinds: Mapping[str, Kind], generator: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Return what it uploads in place of what it knows.

        Args:
            arrays: What it knows.
            kinds: What each of them is, by name.
            generator: Where its inventions come from.
        """
        if self.kind == "flipped":
            return arrays
        return {
            name: values if kinds[name].is_honest else self._fake(kinds[name], values, generator)
            for name, values in arrays.items()
        }

    def _fake(self, kind: Kind, values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        if kind.is_logits_of_samples and self.kind == "imitation":
            return imitate(len(values), self.victim, generator)
        if np.issubdtype(values.dtype, np.floating):
            spread = max(float(np.std(values)), 1.0) if values.size else 1.0
            return (spread * generator.standard_normal(values.shape)).astype(values.dtype)
        shares = self.victim / self.victim.sum() if self.kind == "imitation" else None
        return generator.choice(len(self.victim), values.shape, p=shares).astype(values.dtype)


@dataclass(frozen=True, eq=False)
class ClientFaults:
    """What is wrong with one client."""

    poison: Poison | None = None


def imitate(samples: int, victim: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return confident nonsense, logits `[M, C]` whose mean prediction is a victim's class distribution.

    Every sample gets a class drawn from that distribution, whatever the sample is.
    """
    drawn = generator.choice(len(victim), samples, p=victim / victim.sum())
    return (10.0 * np.eye(len(victim))[drawn]).astype(np.float32)


def poisoned_clients(scenario: Scenario) -> frozenset[int]:
    """Return the clients that are poisoned: a share of all, rounded to the nearest, drawn once."""
    clients = scenario.data.clients
    number = round_half_up(scenario.faults.poisoned * clients)
    if number == 0:
        return frozenset()
    drawn = numpy_generator(scenario.seed, "poisoned").choice(clients, number, replace=False)
    return frozenset(int(client) for client in drawn)


def counted_clients(scenario: Scenario) -> frozenset[int]:
    """Return the clients whose own figures count in means: all but the poisoned, unless all are."""
    poisoned = poisoned_clients(scenario)
    return frozenset(range(scenario.data.clients)) - poisoned or poisoned


def faults_of(scenario: Scenario, client: int, label_distribution: Callable[[], np.ndarray]) -> ClientFaults:
    """Return what is wrong with a client.

    Args:
        scenario: The resolved scenario.
        client: Client index.
        label_distribution: Returns the share of every class among each client's training labels, `[N, C]`;
            asked for a poisoned client alone.
    """
    poisoned = poisoned_clients(scenario)
    if client not in poisoned:
        return ClientFaults()
    honest = [other for other in range(scenario.data.clients) if other not in poisoned] or [client]
    victim = int(numpy_generator(scenario.seed, "victim", client=client).choice(honest))
    return ClientFaults(Poison(scenario.faults.poison, label_distribution()[victim]))


def present_clients(scenario: Scenario, sampled: Sequence[int], round: int) -> list[int]:
    """Return those of the sampled clients that do not drop out of a round; one is always left.

    Args:
        scenario: The resolved scenario.
        sampled: The clients sampled for the round, ascending.
        round: Round, 1-based.
    """
    probability = scenario.faults.dropout
    if probability == 0.0:
        return list(sampled)
    draws = {
        client: numpy_generator(scenario.seed, "dropout", client=client, round=round).random()
        for client in sampled
    }
    present = [client for client in sampled if draws[client] >= probability]
    return present or [max(draws, key=lambda client: (draws[client], client))]


def round_half_up(value: float) -> int:
    """Return the nearest integer, .5 upwards."""
    return int(np.floor(value + 0.5))
