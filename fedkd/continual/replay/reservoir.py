"""Reservoir memory: a uniform sample of all training samples so far.

Vitter, "Random Sampling with a Reservoir", ACM TOMS 11 (1), 1985.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.replay.buffer import counted, fresh_rows
from fedkd.continual.state import LearnerState, TableField

RESERVOIR = "reservoir"
OFFERED = "offered"


class ReservoirState(LearnerState):
    """The reservoir: samples, labels, tasks and outputs as of `Kept`."""

    reservoir = TableField()


class Kept(NamedTuple):
    """Samples with their logits ``[R, O]`` float32 at storage.

    Samples are ``[R, *input_shape]``, labels (among the units of each task) and tasks ``[R]`` int64.
    """

    samples: Tensor
    labels: Tensor
    tasks: Tensor
    outputs: Tensor


def offer(context: LearnerContext, batch: Kept, size: int) -> None:
    """Offer a batch of samples to the memory, one after the other.

    The k-th sample ever offered replaces a random one with probability ``min(1, size / k)``.
    """
    offered = counted(context, RESERVOIR, len(batch.labels), OFFERED)
    places = _places(offered, len(batch.labels), size, context.generator(f"{RESERVOIR}-offer-{offered}"))
    state = ReservoirState(context).reservoir
    held = len(state.get("labels", ()))
    new = [row for place, row in places.items() if place >= held]  # as many as fill it up, in their order
    old = {place: row for place, row in places.items() if place < held}
    for name, values in batch._asdict().items():
        if old:
            to, rows = (torch.tensor(list(index), device=context.device) for index in (old, old.values()))
            state[name].index_copy_(0, to, values[rows])
        if new:
            taken = values[torch.tensor(new, device=context.device)]
            state[name] = torch.cat([state[name], taken]) if held else taken


def _places(offered: int, count: int, size: int, generator: torch.Generator) -> dict[int, int]:
    """Return the new sample in each changed place of the memory, ascending where it grows."""
    uniform: Sequence[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    places: dict[int, int] = {}
    for row, u in enumerate(uniform):
        before = offered + row
        place = before if before < size else int(u * (before + 1))
        if place < size:
            places[place] = row  # replaces the former
    return places


def draw(context: LearnerContext, size: int | None) -> Kept | None:
    """Return a uniformly drawn batch of the reservoir (see `buffer.fresh_rows`)."""
    state = ReservoirState(context).reservoir
    rows = fresh_rows(context, RESERVOIR, len(state.get("labels", ())), size)
    return None if rows is None else Kept(*(state[name].index_select(0, rows) for name in Kept._fields))
