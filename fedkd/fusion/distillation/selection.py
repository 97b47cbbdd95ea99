"""The transfer samples of a round."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fedkd.fusion.strategy import FusionStrategy


def asked_samples(size: int, count: int | None, generator: np.random.Generator) -> np.ndarray | None:
    """Return a round's `request` of `count` of `size` transfer samples; None: all."""
    return None if count is None or count >= size else draw_samples(size, count, generator)


def draw_samples(size: int, count: int | None, generator: np.random.Generator) -> np.ndarray:
    """Draw `count` of `size` indices without repeats, ascending; None or too many: all."""
    if count is None or count >= size:
        return np.arange(size)
    return np.sort(generator.choice(size, count, replace=False))


def varies_requests(strategy: FusionStrategy, transfer_size: int, generator: np.random.Generator) -> bool:
    """Return whether requests vary by round, so that older predictions do not fit."""
    varies = strategy.capabilities.requests_vary
    return varies or strategy.request(transfer_size, {}, generator) is not None
