"""A table of numbers as a picture: a block of pixels for each, from dark (0) to light (1)."""

from __future__ import annotations

import numpy as np

SIDE = 480
"""Pixels along the longer side, about."""
NOTHING = (128, 128, 128)
"""Colour of what was not measured."""


def heat_map(values: np.ndarray) -> np.ndarray:
    """Return a picture of a table.

    Args:
        values: `[rows, columns]` in [0, 1]; beyond, the nearest colour is taken. NaN: not measured.

    Returns:
        `[height, width, 3]` uint8, the first row on top.
    """
    from matplotlib import colormaps

    known = np.isfinite(values)
    shades = colormaps["viridis"](np.clip(np.where(known, values, 0.0), 0.0, 1.0))[..., :3]
    colours = np.where(known[..., None], np.rint(255 * shades), NOTHING).astype(np.uint8)
    block = max(1, SIDE // max(values.shape))
    return colours.repeat(block, axis=0).repeat(block, axis=1)
