"""What a client learns of how transfer samples are related, beside what its strategy teaches of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedkd.scenario.schema import Relations
from fedkd.training.relations import angle_huber, distance_huber, graph_kl

LEAST = 1e-7
"""Probabilities below it count as this, so that their logarithms are numbers."""


@dataclass(frozen=True)
class RelationLoss:
    """The loss on relations that a scenario asks for."""

    wanted: Relations

    def __call__(self, features: Tensor, told: Tensor) -> Tensor:
        """Return the weighted loss of a batch, a scalar.

        Args:
            features: The client's, ``[B, F]``.
            told: What `told` made of the batch's targets, ``[B, C]``.
        """
        wanted = self.wanted
        if wanted.kind == "trg":
            return wanted.weight * graph_kl(features, told, wanted.temperature)
        value = wanted.distance * distance_huber(features, told)
        return wanted.weight * (value + wanted.angle * angle_huber(features, told))


def told(probabilities: np.ndarray) -> np.ndarray:
    """Return the logarithms of targets' probabilities, whose relations are learned: ``[K, C]`` float32."""
    return np.log(np.maximum(probabilities, LEAST)).astype(np.float32)
