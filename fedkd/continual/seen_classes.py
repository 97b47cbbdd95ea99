"""Output units of the classes that a client has seen, for shared and separate units."""

import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.masks.masks import pack, unpack
from fedkd.continual.state import LearnerState, Value


class SeenState(LearnerState):
    """Output units as bits."""

    met = Value()
    """Units of classes of earlier tasks."""
    present = Value()
    """Units of the present task."""


def seen_units(context: LearnerContext) -> Tensor:
    """Return the units of classes seen in earlier tasks, ``[O]`` bool."""
    return _units(context, SeenState(context).met)


def noted_units(context: LearnerContext) -> Tensor:
    """Return the present task's units as `note_present` found them, ``[O]`` bool."""
    return _units(context, SeenState(context).present)


def note_present(context: LearnerContext) -> None:
    """Store the `present_units`, so that steps need no samples to read them."""
    SeenState(context).present = pack(present_units(context))


def _units(context: LearnerContext, bits: Tensor | None) -> Tensor:
    if bits is None:
        return torch.zeros(context.outputs, dtype=torch.bool, device=context.device)
    return unpack(bits, (context.outputs,))


def present_units(context: LearnerContext) -> Tensor:
    """Return the present task's units ``[O]`` bool; of units shared with other tasks, those with samples."""
    own = context.units[context.task]
    some = own[context.samples()[1].unique()] if is_shared(context, context.task) else own
    present = torch.zeros(context.outputs, dtype=torch.bool, device=context.device)
    present[some] = True
    return present


def mark_seen(context: LearnerContext, units: Tensor) -> None:
    """Mark further units ``[O]`` bool as seen."""
    SeenState(context).met = pack(seen_units(context) | units)


def is_shared(context: LearnerContext, task: int) -> bool:
    """Return whether another task of the stream has the same units."""
    others = (units for other, units in enumerate(context.units) if other != task)
    return any(torch.equal(units, context.units[task]) for units in others)
