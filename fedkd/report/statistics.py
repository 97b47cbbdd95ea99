"""Error bars over seeds.

Two settings that were run with the same seeds share their data, their partition and their initial weights, so
the difference is taken seed by seed (a paired comparison): what a seed adds to both cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval, ``mean ± half``.

    Attributes:
        mean: Mean over seeds.
        half: Half the width of the interval; None: one seed has no spread.
        seeds: Number of seeds n.
    """

    mean: float
    half: float | None
    seeds: int

    def excludes_zero(self) -> bool | None:
        """Return whether 0 lies outside the interval; None: there is no interval."""
        return None if self.half is None else abs(self.mean) > self.half


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Return the mean of `values` with Student's interval, t_{n-1} · s / √n, where s² divides by n - 1.

    Args:
        values: One value per seed, n ≥ 1.
        level: Confidence.
    """
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n == 1:
        return Interval(float(array[0]), None, 1)
    spread = float(array.std(ddof=1))
    return Interval(float(array.mean()), _student(level, n - 1) * spread / sqrt(n), n)


def paired_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], level: float = LEVEL
) -> Interval | None:
    """Return the mean of ``ours - theirs`` over the seeds that both have; None: there is no such seed.

    Args:
        ours: Seed to value.
        theirs: Seed to value.
        level: Confidence.
    """
    shared = [seed for seed in ours if seed in theirs]
    return interval([ours[seed] - theirs[seed] for seed in shared], level) if shared else None


def _student(level: float, degrees: int) -> float:
    # Imported here: scipy.stats takes a second, and a dry run needs none of it.
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, degrees))
