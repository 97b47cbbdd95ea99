"""Losses of local training: cross entropy, FedProx's pull, guidance and rehearsed samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from fedkd.fusion import Arrays, LocalBatch, LocalStep
from fedkd.scenario import Relations
from fedkd.training import AuxBatches, angle_huber, count_correct, cross_entropy, distance_huber, graph_kl

LEAST = 1e-7
"""Least probability whose logarithm is taken."""
TARGETS, SAMPLES, ROUND = "targets", "samples", "round"
"""Names of a `LastGuidance`'s arrays."""

Taught = Callable[[Tensor, "Tensor | None", Tensor], Tensor]
"""Term of guidance: logits ``[B, C]``, features ``[B, F]`` and labels ``[B]`` to a scalar."""


@dataclass(frozen=True, eq=False)
class Rehearsed:
    """Batches of rehearsed samples, and their term in the loss of local training.

    `alike`: all clients of the scenario have this loss, and it only computes.
    """

    batches: AuxBatches
    loss: Callable[[Tensor, Tensor], Tensor]
    weight: float = 1.0
    alike: bool = False

    def __call__(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the term of a batch, a scalar with gradients."""
        return self.weight * self.loss(model(inputs), targets)


@dataclass(frozen=True, eq=False)
class LastGuidance:
    """Rehearsed targets ``[K, C]`` of a fusion, and their samples ``[K]``; None: all."""

    targets: np.ndarray
    samples: np.ndarray | None
    round: int

    def age(self, round: int) -> int:
        """Return the number of rounds without newer guidance when a round's training begins."""
        return max(0, round - self.round - 1)

    def state(self) -> dict[str, np.ndarray]:
        arrays = {TARGETS: self.targets, ROUND: np.array(self.round, dtype=np.int64)}
        return arrays if self.samples is None else arrays | {SAMPLES: self.samples}

    @staticmethod
    def restored(arrays: Arrays) -> LastGuidance | None:
        """Return the guidance of a `state`; None: there was none."""
        if not arrays:
            return None
        return LastGuidance(arrays[TARGETS], arrays.get(SAMPLES), int(arrays[ROUND]))


@dataclass(frozen=True, eq=False)
class ProximalTerm:
    """FedProx's pull to the received weights (Li et al. 2020), ``μ/2 · ‖w − w_received‖²``."""

    mu: float
    received: Sequence[Tensor]

    def __call__(self, model: nn.Module, received: Sequence[Tensor] = ()) -> Tensor:
        """Return the scalar term for a model; joint training passes each client's `received` weights."""
        pairs = zip(model.parameters(), received or self.received, strict=True)
        squares: Tensor = sum((p - start).square().sum() for p, start in pairs)  # type: ignore[assignment]
        return 0.5 * self.mu * squares


@dataclass(frozen=True, eq=False)
class LocalLoss:
    """Cross entropy with FedProx's pull and the strategy's guidance; or the strategy's own loss.

    Attributes:
        taught: Term of guidance.
        with_features: True if that term, or the strategy's own loss, needs the model's features.
        step: The strategy's own loss in place of cross entropy and guidance; it gets the samples' indices.
        of_task: Loss of the task in place of the cross entropy.
    """

    proximal: ProximalTerm | None = None
    taught: Taught | None = None
    with_features: bool = False
    rehearsed: Rehearsed | None = None
    step: LocalStep | None = None
    of_task: Callable[[Tensor, Tensor], Tensor] = cross_entropy

    @property
    def constants(self) -> Sequence[Tensor]:
        """Tensors after the batch (see `TrainJob.constants`)."""
        return () if self.proximal is None else self.proximal.received

    @property
    def own_alone(self) -> bool:
        """True if clients differ only in arrays and constants, so that they can train together."""
        alone = self.taught is None and self.step is None
        return alone and (self.rehearsed is None or self.rehearsed.alike)

    def __call__(self, model: Any, inputs: Tensor, labels: Tensor, *others: Tensor) -> Tensor:
        """Return the mean loss of a batch; others: indices for `step`, a rehearsed batch, constants."""
        return self._with_logits(model, inputs, labels, others)[0]

    def scored(self, model: Any, inputs: Tensor, labels: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        """Return it with the number of correct answers (see `TrainJob.scored_loss`)."""
        value, logits = self._with_logits(model, inputs, labels, others)
        return value, count_correct(logits, labels)

    def _with_logits(
        self, model: Any, inputs: Tensor, labels: Tensor, others: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        index, others = (others[0], others[1:]) if self.step is not None else (None, others)
        extra = None
        if self.rehearsed is not None:
            # Before the private samples: a learner later reads the model's state of those.
            extra, others = self.rehearsed(model, others[0], others[1]), others[2:]
        features = model.features(inputs) if self.with_features else None
        logits = model(inputs) if features is None else model.head(features)
        flat = None if features is None else features.flatten(1)  # as they were uploaded
        if self.step is not None and index is not None:
            told = self.step(LocalBatch(model, index, inputs, labels, logits, flat))
            value, logits = told if isinstance(told, tuple) else (told, logits)
        else:
            value = self.of_task(logits, labels)
            if self.taught is not None:
                value = value + self.taught(logits, flat, labels)
        if extra is not None:
            value = value + extra
        return (value if self.proximal is None else value + self.proximal(model, others)), logits


def relation_loss(wanted: Relations, features: Tensor, told: Tensor) -> Tensor:
    """Return the loss on relations of features ``[B, F]`` and log-probabilities of targets ``[B, C]``."""
    if wanted.kind == "trg":
        return wanted.weight * graph_kl(features, told, wanted.temperature)
    value = wanted.distance * distance_huber(features, told)
    return wanted.weight * (value + wanted.angle * angle_huber(features, told))


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Return the finite logarithms ``[K, C]`` float32 of targets' probabilities."""
    return np.log(np.maximum(probabilities, LEAST)).astype(np.float32)
