"""Curves of several seeds as one: means, and intervals where there are seeds enough for any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedkd.report.statistics import interval

Points = Sequence[tuple[float, float]]
"""Pairs of x, such as a round, and a value."""
FEWEST_SEEDS = 3
"""Seeds from which there is a band. Student's t for two is 12.7: the band would cover the page."""


@dataclass(frozen=True, eq=False)
class SeedCurves:
    """A metric over rounds, tasks or bytes.

    Attributes:
        x: Where all seeds have a value, `[R]`.
        mean: Over seeds, `[R]`.
        half: Half widths of the 95 % intervals, `[R]`; None: there are fewer than three seeds.
        seeds: The values of every seed, `[n, R]`.
    """

    x: np.ndarray
    mean: np.ndarray
    half: np.ndarray | None
    seeds: np.ndarray


def curve_over_seeds(curves: Sequence[Points], *, by_place: bool = False) -> SeedCurves | None:
    """Return the curves of several seeds as one; None: they share no point, or there are none.

    Args:
        curves: One a seed: pairs of x and value.
        by_place: Whether the k-th points of all belong together and x is their mean, as with bytes, which
            differ a little from seed to seed; else those with the same x.
    """
    if not curves:
        return None
    if by_place:
        length = min(map(len, curves))
        x = np.array([[at for at, _ in curve[:length]] for curve in curves], dtype=np.float64).mean(axis=0)
        values = np.array([[value for _, value in curve[:length]] for curve in curves], dtype=np.float64)
    else:
        tables = [dict(curve) for curve in curves]
        shared = sorted(set.intersection(*(set(table) for table in tables)))
        x = np.array(shared)
        values = np.array([[table[at] for at in shared] for table in tables], dtype=np.float64)
    if not len(x):
        return None
    half = None
    if len(values) >= FEWEST_SEEDS:
        half = np.array([interval(column.tolist()).half for column in values.T], dtype=np.float64)
    return SeedCurves(x, values.mean(axis=0), half, values)
