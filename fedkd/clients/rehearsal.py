"""What samples that a strategy has sent add to the loss of local training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fedkd.fusion.views import Rehearsal
from fedkd.training.device import prepare_inputs


class RehearsalTerm:
    """A term of the loss that takes the next batch of rehearsed samples whenever it is asked for.

    Args:
        rehearsal: Samples, and what the model shall say of them.
        batch_size: Samples of a batch; all of them, if there are not so many.
        generator: CPU generator of the permutations; it moves on with the batches.
        device: The model's.
    """

    def __init__(
        self, rehearsal: Rehearsal, batch_size: int, generator: torch.Generator, device: torch.device
    ) -> None:
        self._samples = prepare_inputs(rehearsal.samples, device)
        self._targets = prepare_inputs(rehearsal.targets, device)
        self._loss = rehearsal.loss
        self._batches = _batches(len(self._samples), batch_size, generator)

    def __call__(self, model: nn.Module) -> Tensor:
        """Return the loss of a model on the next batch, a scalar with gradients."""
        rows = next(self._batches).to(self._samples.device)
        return self._loss(model(self._samples.index_select(0, rows)), self._targets.index_select(0, rows))


def _batches(samples: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield indices ``[B]`` without end: whole shuffles of all samples, one after another."""
    size = min(batch_size, samples)
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        if len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(samples, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]
