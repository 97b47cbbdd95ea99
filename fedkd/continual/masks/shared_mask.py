"""The mask of a client's present task as other clients see it, and its scores after a vote."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Tensors
from fedkd.continual.masks import masks

if TYPE_CHECKING:
    from fedkd.continual.masks.mask_memory import MaskMemory
    from fedkd.continual.masks.supermask import SupermaskLearner

FINGERPRINT = 8
"""Bytes of a fingerprint: two of 2³² different ones are the same by accident with probability 1/2."""


@dataclass(frozen=True, eq=False)
class SharedMask:
    """Implements `fedkd.fusion.views.Supermask` for a learner's present task.

    All masked weights count as one vector of d, in the network's order. `fingerprint` is of initial weights.
    """

    learner: SupermaskLearner
    context: LearnerContext
    fingerprint: np.ndarray

    @property
    def _memory(self) -> MaskMemory:
        return self.learner.memory(self.context)

    @property
    def _slot(self) -> int:
        return self.learner.slot(self.context, self.context.task)

    @property
    def is_settled(self) -> bool:
        """True if the mask is final."""
        return self._memory.is_settled(self._slot)

    def bits(self) -> np.ndarray:
        """Return the mask's bits ``[⌈d/8⌉]`` uint8; without training, those of the initial scores."""
        return _packed(list(self._memory.masks(self._slot).values()))

    def taken(self) -> np.ndarray | None:
        """Return the bits of all weights in earlier masks; empty: none yet; None: no weights are trained."""
        if not self.learner.traits.trains_masked_weights:
            return None
        earlier = [self._memory.masks(old) for old in self.learner.earlier(self.context, self._slot)]
        if not earlier:
            return np.empty(0, dtype=np.uint8)
        return _packed([torch.stack([old[name] for old in earlier]).any(dim=0) for name in earlier[0]])

    def agree(self, log_odds: np.ndarray, taken: np.ndarray | None) -> None:
        """Rank the scores by log-odds ``[≥ d]``, without others' weights; a settled mask stays.

        `taken` are the bits of weights whose training has ended.
        """
        memory, slot = self._memory, self._slot
        if memory.is_settled(slot):
            return
        own = memory.scores(slot) if memory.has_scores(slot) else memory.fresh_scores(slot)
        with torch.no_grad():
            for (name, scores), part in zip(own.items(), self._by_layer(log_odds), strict=True):
                agreed = masks.agreed_scores(scores.detach(), part.view_as(scores), memory.rule)
                memory.set_scores(slot, {name: agreed})
        if taken is None:
            memory.set_others(None)
        else:
            closed = self._by_layer(np.unpackbits(taken).astype(bool))
            memory.set_others([masks.pack(part) for part in closed])

    def _by_layer(self, values: np.ndarray) -> Sequence[Tensor]:
        sizes = self._memory.sizes
        return torch.from_numpy(values[: sum(sizes)]).to(self.context.device).split(sizes)


def fingerprint_weights(weights: Tensors) -> np.ndarray:
    """Return a fingerprint ``[FINGERPRINT]`` uint8 of weights, by names, shapes and values."""
    told = hashlib.blake2b(digest_size=FINGERPRINT)
    for name, weight in weights.items():
        told.update(f"{name} {tuple(weight.shape)} ".encode())
        told.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return np.frombuffer(told.digest(), dtype=np.uint8).copy()


def _packed(layers: Sequence[Tensor]) -> np.ndarray:
    return np.packbits(torch.cat([layer.flatten() for layer in layers]).cpu().numpy())
