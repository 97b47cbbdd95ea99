"""Quadratic penalties: weights are pulled back to where they were, each as hard as it is important."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Tensors
from fedkd.namespaces import below, under

IMPORTANCE = "importance/"
"""Memory of Ω, one number a weight, by the parameter's name."""
ANCHOR = "anchor/"
"""Memory of θ*, the weights that Ω pulls to."""


def remembered(context: LearnerContext, kind: str) -> Tensors:
    """Return what is remembered of one kind, by parameter; empty: nothing yet.

    Args:
        context: The client's.
        kind: Beginning of the names in memory, such as `IMPORTANCE`.
    """
    return below(kind, context.memory)


def remember(context: LearnerContext, kind: str, values: Mapping[str, Tensor]) -> None:
    """Remember copies of tensors, one for each parameter, in the place of any earlier ones of their kind."""
    copies = {name: tensor.detach().clone() for name, tensor in values.items()}
    context.memory.update(under(kind, copies))


def squared_distance(context: LearnerContext) -> Tensor | None:
    """Return ``Σ_i Ω_i (θ_i − θ*_i)²``, a scalar; None before anything is important."""
    importance, anchor = remembered(context, IMPORTANCE), remembered(context, ANCHOR)
    if not importance:
        return None
    own = dict(context.network.named_parameters())
    parts = [_Distance.apply(own[name], anchor[name], omega) for name, omega in importance.items()]
    return torch.stack(parts).sum()


class _Distance(torch.autograd.Function):
    """One tensor's part, with half its gradient ``2Ω(θ − θ*)`` kept from the forward pass: half as dear."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, anchor: Tensor, importance: Tensor) -> Tensor:
        moved = weights - anchor
        pull = importance * moved
        ctx.save_for_backward(pull)
        return torch.dot(pull.flatten(), moved.flatten())

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        return 2.0 * outer[0] * ctx.saved_tensors[0], None, None
