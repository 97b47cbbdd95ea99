"""Reservoir memory: of all that was trained on so far, anything is as likely to be kept as anything else.

Vitter, "Random Sampling with a Reservoir", ACM TOMS 11 (1), 1985. Samples are kept as
they are, outputs as float32, labels and tasks as int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.replay.buffer import counted, fresh_rows
from fedkd.continual.state import LearnerState, Table

RESERVOIR = "reservoir"
OFFERED = "offered"


class ReservoirState(LearnerState):
    """The reservoir: samples, labels, tasks and outputs as of `Kept`."""

    reservoir = Table()


class Kept(NamedTuple):
    """Samples that were trained on, with what the network said of them then.

    Attributes:
        samples: ``[R, *input_shape]``.
        labels: ``[R]`` int64, positions among the units of each sample's task.
        tasks: ``[R]`` int64.
        outputs: ``[R, O]`` float32, the logits of the moment at which a sample was taken in.
    """

    samples: Tensor
    labels: Tensor
    tasks: Tensor
    outputs: Tensor


def offer(context: LearnerContext, batch: Kept, size: int) -> None:
    """Offer a batch of samples to the memory, one after the other.

    The k-th sample ever offered is taken in with probability ``min(1, size / k)``, in the place of any other.

    Args:
        context: The number of samples offered so far is kept in its memory.
        batch: The samples.
        size: Of the memory.
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
    """Return which of `count` samples ends up in which place of the memory, ascending where it grows."""
    uniform: Sequence[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    places: dict[int, int] = {}
    for row, u in enumerate(uniform):
        before = offered + row
        place = before if before < size else int(u * (before + 1))
        if place < size:
            places[place] = row  # whoever had it is gone
    return places


def draw(context: LearnerContext, size: int | None) -> Kept | None:
    """Return a fresh batch of what is kept, all of it equally likely (see `episodes.fresh_rows`)."""
    state = ReservoirState(context).reservoir
    rows = fresh_rows(context, RESERVOIR, len(state.get("labels", ())), size)
    return None if rows is None else Kept(*(state[name].index_select(0, rows) for name in Kept._fields))
