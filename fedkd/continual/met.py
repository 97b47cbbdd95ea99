"""Which output units are those of classes that a client has met, whether tasks share units or not."""

from __future__ import annotations

import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.masks import pack, unpack

MET = "met"


def seen_units(context: LearnerContext) -> Tensor:
    """Return which units are those of classes met in earlier tasks, ``[O]`` bool."""
    if MET in context.memory:
        return unpack(context.memory[MET], (context.outputs,))
    return torch.zeros(context.outputs, dtype=torch.bool, device=context.device)


def present_units(context: LearnerContext) -> Tensor:
    """Return which units the present task is about, ``[O]`` bool.

    All its own, or, where other tasks have the same, those of the classes that its samples are of.
    """
    own = context.units[context.task]
    some = own[context.samples()[1].unique()] if is_shared(context, context.task) else own
    present = torch.zeros(context.outputs, dtype=torch.bool, device=context.device)
    present[some] = True
    return present


def mark_seen(context: LearnerContext, units: Tensor) -> None:
    """Remember further units ``[O]`` bool as met."""
    context.memory[MET] = pack(seen_units(context) | units)


def is_shared(context: LearnerContext, task: int) -> bool:
    """Return whether another task of the stream has the same units."""
    return any(
        torch.equal(units, context.units[task]) for other, units in enumerate(context.units) if other != task
    )
