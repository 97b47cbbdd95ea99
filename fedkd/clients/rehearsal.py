"""What is learned over again along with private samples: a batch of it in every step of local training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fedkd.fusion.views import Arrays
from fedkd.training.alongside import AuxBatches

TARGETS = "targets"
SAMPLES = "samples"
ROUND = "round"


@dataclass(frozen=True, eq=False)
class Rehearsed:
    """Other samples than private ones, in batches, and what they add to the loss of local training.

    Attributes:
        batches: Inputs ``[m, ...]`` and targets ``[m, ...]``.
        loss: A function of outputs ``[B, C]`` and targets ``[B, ...]``, a scalar.
        alike: Whether other clients of the scenario have the same loss, which does nothing but compute.
    """

    batches: AuxBatches
    loss: Callable[[Tensor, Tensor], Tensor]
    weight: float = 1.0
    alike: bool = False

    def __call__(self, model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return what a batch adds, a scalar with gradients."""
        return self.weight * self.loss(model(inputs), targets)


@dataclass(frozen=True, eq=False)
class LastGuidance:
    """The guidance that a client rehearses until the next comes.

    Attributes:
        targets: ``[K, C]``.
        samples: Which transfer samples they are about, ``[K]``; None: all.
    """

    targets: np.ndarray
    samples: np.ndarray | None
    round: int

    def of(self, transfer: np.ndarray) -> np.ndarray:
        """Return those of the transfer samples that it is about."""
        return transfer if self.samples is None else transfer[self.samples]

    def age(self, round: int) -> int:
        """Return for how many rounds newer guidance has been missed when a round's training begins."""
        return max(0, round - self.round - 1)

    def state(self) -> dict[str, np.ndarray]:
        """Return it as arrays by name."""
        arrays = {TARGETS: self.targets, ROUND: np.array(self.round, dtype=np.int64)}
        return arrays if self.samples is None else arrays | {SAMPLES: self.samples}

    @staticmethod
    def restored(arrays: Arrays) -> LastGuidance | None:
        """Return what `state` was taken of; None: there was none."""
        if not arrays:
            return None
        return LastGuidance(arrays[TARGETS], arrays.get(SAMPLES), int(arrays[ROUND]))
