"""Quadratic penalties pull weights to an anchor, in proportion to their importance."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.fast_steps import FastSteps
from fedkd.continual.learner import Learner, Step, Tensors
from fedkd.continual.state import LearnerState, TableField, Value


class AnchorState(LearnerState):
    """Memory of quadratic penalties, by parameter."""

    importance = TableField()
    """Ω, a number a weight."""
    anchor = TableField()
    """θ*, the weights that Ω pulls to."""
    path = TableField()
    """ω of SI, a number a weight, within a task."""
    constant = Value()
    """K of EWC, a scalar."""


class QuadraticPenalty(FastSteps, Learner):
    """Base of learners with the penalty ``c · s · Σ_i Ω_i (θ_i − θ*_i)²``, s being `strength`."""

    strength: float
    factor: ClassVar[float] = 1.0
    """c."""

    def penalty(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return the penalty; None before any weight is important."""
        distance = squared_distance(context)
        return None if distance is None else self.factor * self.strength * distance


def add_importance(context: LearnerContext, own: Tensors, decay: float = 1.0) -> None:
    """Set ``Ω ← γ Ω + Ω_t`` with the last task's importance Ω_t."""
    importance = AnchorState(context).importance
    old = importance.part()
    importance.put({name: decay * old[name] + omega if old else omega for name, omega in own.items()})


def copies(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return detached copies by name."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def squared_distance(context: LearnerContext) -> Tensor | None:
    """Return ``Σ_i Ω_i (θ_i − θ*_i)²``, a scalar; None before any weight is important."""
    state, own = AnchorState(context), dict(context.network.named_parameters())
    anchor = state.anchor.part()
    parts = [
        _Distance.apply(own[name], anchor[name], omega) for name, omega in state.importance.part().items()
    ]
    return torch.stack(parts).sum() if parts else None


class _Distance(torch.autograd.Function):
    """One tensor's part; half its gradient ``2Ω(θ − θ*)`` is kept from the forward pass, at half the cost."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, anchor: Tensor, importance: Tensor) -> Tensor:
        moved = weights - anchor
        pull = importance * moved
        ctx.save_for_backward(pull)
        return torch.dot(pull.flatten(), moved.flatten())

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        return 2.0 * outer[0] * ctx.saved_tensors[0], None, None
