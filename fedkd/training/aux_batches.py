"""Auxiliary batches: other samples, of which each step of a job takes a batch besides its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class AuxBatches:
    """Endless shuffled batches of tensors ``[m, ...]``, m ≥ 1, over epochs and jobs."""

    def __init__(self, arrays: Sequence[Tensor], batch_size: int, generator: torch.Generator) -> None:
        self.arrays = arrays
        self.size = min(batch_size, len(arrays[0]))
        self._generator = generator
        self._waiting = torch.empty(0, dtype=torch.int64)

    def draw(self) -> list[Tensor]:
        """Return the next batch of each array, ``[B, ...]``."""
        if len(self._waiting) < self.size:
            shuffle = torch.randperm(len(self.arrays[0]), generator=self._generator)
            self._waiting = torch.cat([self._waiting, shuffle])
        rows = self._waiting[: self.size].to(self.arrays[0].device)
        self._waiting = self._waiting[self.size :]
        return [array.index_select(0, rows) for array in self.arrays]

    def position(self) -> tuple[Tensor, Tensor]:
        """Return the position in the order, for `go_back`."""
        return self._generator.get_state(), self._waiting

    def go_back(self, position: tuple[Tensor, Tensor]) -> None:
        """Draw again from a position on."""
        state, self._waiting = position
        self._generator.set_state(state)
