"""Bases of strategies whose clients learn one distribution over classes per transfer sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedkd.fusion import FusionStrategy, softmax

if TYPE_CHECKING:
    from torch import Tensor


class SoftLabels(FusionStrategy):
    """Base of strategies whose clients distil soft labels by cross entropy."""

    recordable: ClassVar[bool] = True

    def loss(self, student_logits: Tensor, targets: Tensor) -> Tensor:
        """Return ``−mean_i Σ_c t_ic log softmax(z_i)_c`` of logits `[B, C]` and soft labels `[B, C]`."""
        from fedkd.training import soft_cross_entropy

        return soft_cross_entropy(student_logits, targets)


class TemperedLabels(FusionStrategy):
    """Base of strategies with targets as probabilities at temperature T, distilled by KL at T."""

    recordable: ClassVar[bool] = True

    temperature: float

    def loss(self, student_logits: Tensor, targets: Tensor) -> Tensor:
        """Return ``T² · mean_i KL(t_i ‖ softmax(z_i / T))`` of logits `[B, C]` and targets `[B, C]`."""
        from fedkd.training import kd_kl

        return kd_kl(student_logits, targets, self.temperature)

    def probabilities(self, targets: np.ndarray) -> np.ndarray:
        """Return targets at temperature 1: the predictions of a perfect student."""
        return targets if self.temperature == 1 else power(targets, self.temperature)


class TeacherLogits(FusionStrategy):
    """Base of strategies with targets as logits, distilled by KL at temperature T."""

    recordable: ClassVar[bool] = True

    temperature: float

    def loss(self, student_logits: Tensor, targets: Tensor) -> Tensor:
        """Return ``T² · mean_i KL(softmax(t_i / T) ‖ softmax(z_i / T))`` of logits `[B, C]`, both."""
        from fedkd.training import kd_kl

        return kd_kl(student_logits, (targets / self.temperature).softmax(dim=-1), self.temperature)

    def probabilities(self, targets: np.ndarray) -> np.ndarray:
        """Return targets as probabilities."""
        return softmax(targets)


def mean_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the uniform mean over clients of ``softmax(z)`` of logits `[N, M, C]`, `[M, C]` float32."""
    mean = softmax(logits).mean(axis=0, dtype=np.float64)
    return mean.astype(np.float32)


def entropy_reduction(mean: np.ndarray, temperature: float) -> np.ndarray:
    """Return ``softmax(mean / T)``, the entropy reduction aggregation (ERA) of DS-FL, `[M, C]`.

    Two classes end up at most a factor exp(1/T) apart.
    """
    return softmax(mean, temperature)


def power(mean: np.ndarray, exponent: float) -> np.ndarray:
    """Return ``mean^b / Σ mean^b``, SCARLET's enhanced ERA, `[M, C]`; b > 1 lowers the entropy."""
    raised = (mean / mean.max(axis=-1, keepdims=True)) ** exponent  # the largest is 1: no row vanishes
    return raised / raised.sum(axis=-1, keepdims=True)
