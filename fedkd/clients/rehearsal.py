"""Rehearsed samples: an auxiliary batch in every step of local training."""

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
    """Batches of other samples than private ones, and their term in the loss of local training.

    Attributes:
        batches: Inputs ``[m, ...]`` and targets ``[m, ...]``.
        loss: Outputs ``[B, C]`` and targets ``[B, ...]`` to a scalar.
        alike: Whether all clients of the scenario have this loss, and it only computes.
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
    """The guidance that a client rehearses until the next comes.

    Attributes:
        targets: ``[K, C]``.
        samples: Indices of their transfer samples ``[K]``; None: all.
        round: Round of its fusion.
    """

    targets: np.ndarray
    samples: np.ndarray | None
    round: int

    def of(self, transfer: np.ndarray) -> np.ndarray:
        """Return its samples among the transfer samples."""
        return transfer if self.samples is None else transfer[self.samples]

    def age(self, round: int) -> int:
        """Return the number of rounds without newer guidance when a round's training begins."""
        return max(0, round - self.round - 1)

    def state(self) -> dict[str, np.ndarray]:
        """Return it as arrays by name."""
        arrays = {TARGETS: self.targets, ROUND: np.array(self.round, dtype=np.int64)}
        return arrays if self.samples is None else arrays | {SAMPLES: self.samples}

    @staticmethod
    def restored(arrays: Arrays) -> LastGuidance | None:
        """Return the guidance of a `state`; None: there was none."""
        if not arrays:
            return None
        return LastGuidance(arrays[TARGETS], arrays.get(SAMPLES), int(arrays[ROUND]))
