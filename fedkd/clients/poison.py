"""Attacks of poisoned clients: wrong labels and fake uploads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedkd.fusion import Kind
from fedkd.plan import poisoned_clients, poisoning_victim
from fedkd.scenario import Scenario


@dataclass(frozen=True, eq=False)
class Poison:
    """The attack of a poisoned client; `victim` is the imitated class distribution `[C]`."""

    kind: Literal["random", "flipped", "imitation", "constant"]
    victim: np.ndarray

    def labels(self, labels: np.ndarray, classes: int) -> np.ndarray:
        """Return the training labels: C − 1 − y if they are flipped."""
        return classes - 1 - labels if self.kind == "flipped" else labels

    def fake(self, kind: Kind, values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return fake values in place of honest ones; some kinds, such as indices, stay valid."""
        if self.kind == "flipped" or kind.is_honest:
            return values
        if kind.is_logits_of_samples and self.kind == "imitation":
            return imitate(len(values), self.victim, generator)
        if kind.is_logits_of_samples and self.kind == "constant":
            return constant(values)
        if kind is Kind.VOTES and self.kind == "constant":
            return np.zeros_like(values)
        if kind is Kind.MASKS:  # as many weights, but others
            return np.packbits(generator.permutation(np.unpackbits(values)))
        if kind is Kind.SHARES:
            return generator.integers(0, 256, values.shape, dtype=np.uint8)
        if np.issubdtype(values.dtype, np.floating):
            spread = max(float(np.std(values)), 1.0) if values.size else 1.0
            return (spread * generator.standard_normal(values.shape)).astype(values.dtype)
        shares = self.victim / self.victim.sum() if self.kind == "imitation" else None
        return generator.choice(len(self.victim), values.shape, p=shares).astype(values.dtype)


def imitate(samples: int, victim: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return confident logits `[M, C]` of random classes drawn from a victim's class distribution."""
    drawn = generator.choice(len(victim), samples, p=victim / victim.sum())
    return (10.0 * np.eye(len(victim))[drawn]).astype(np.float32)


def constant(logits: np.ndarray) -> np.ndarray:
    """Return logits `[M, C]` that are almost certain of class 0."""
    rare = 1e-4 / max(logits.shape[1], 1)
    said = np.where(np.arange(logits.shape[1]) == 0, 1.0 - 1e-4 + rare, rare)
    return np.broadcast_to(np.log(said), logits.shape).astype(logits.dtype)


def poison_of(scenario: Scenario, client: int, label_distribution: Callable[[], np.ndarray]) -> Poison | None:
    """Return the attack of a client; None: it is honest.

    `label_distribution` returns each client's class shares `[N, C]`; it is called for poisoned clients only.
    """
    if client not in poisoned_clients(scenario):
        return None
    return Poison(scenario.faults.poison, label_distribution()[poisoning_victim(scenario, client)])
