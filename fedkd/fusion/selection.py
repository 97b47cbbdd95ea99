"""Which transfer samples take part in a round."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fedkd.fusion.strategy import FusionStrategy


def asked_samples(size: int, count: int | None, generator: np.random.Generator) -> np.ndarray | None:
    """Return what `FusionStrategy.request` does where a round draws `count` transfer samples; None: all.

    Args:
        size: Transfer samples that there are.
        count: How many to draw; None or too many: all.
        generator: The round's own.
    """
    return None if count is None or count >= size else draw_samples(size, count, generator)


def draw_samples(size: int, count: int | None, generator: np.random.Generator) -> np.ndarray:
    """Draw `count` of `size` indices without repeats; ascending, so that they say nothing but who was drawn.

    Args:
        size: How many there are.
        count: How many to draw; None or too many: all.
        generator: Source of the draw.
    """
    if count is None or count >= size:
        return np.arange(size)
    return np.sort(generator.choice(size, count, replace=False))


def asks_anew(strategy: FusionStrategy, transfer_size: int, generator: np.random.Generator) -> bool:
    """Return whether each round asks for other transfer samples, which older predictions miss.

    Args:
        strategy: With its `request`.
        transfer_size: Number of transfer samples M.
        generator: A round's.
    """
    varies = strategy.capabilities.requests_vary
    return varies or strategy.request(transfer_size, {}, generator) is not None
