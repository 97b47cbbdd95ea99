"""What strategies have in common whose guidance is one probability distribution per transfer sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedkd.fusion.strategy import FusionStrategy

if TYPE_CHECKING:
    from torch import Tensor


class SoftLabels(FusionStrategy):
    """Base of strategies whose clients learn soft labels by cross entropy."""

    def loss(self, student_logits: Tensor, targets: Tensor) -> Tensor:
        """Return ``−mean_i Σ_c t_ic log softmax(z_i)_c`` of logits `[B, C]` and soft labels `[B, C]`."""
        from fedkd.training.losses import soft_cross_entropy

        return soft_cross_entropy(student_logits, targets)
