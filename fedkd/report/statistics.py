"""Error bars over seeds.

Two settings that were run with the same seeds share their data, their partition and their initial weights, so
the difference is taken seed by seed (a paired comparison): what a seed adds to both cancels.

A table has many differences, and one interval of 95 % in twenty excludes 0 by chance. So a table marks those
that survive a correction over the family of all its differences of one metric, by Benjamini and Hochberg.
Holm's correction bounds the chance of a single false mark: with three seeds no difference of a large table
survives it. Benjamini and Hochberg bound the expected share of false marks, also where differences depend on
each other positively, as those to one baseline do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

LEVEL = 0.95
FEWEST_SEEDS = 3
"""Seeds from which a figure shows an interval. Student's t for two is 12.7: a band would cover the page."""
FALSE_DISCOVERY_RATE = 0.05  # expected share of false ones among the differences that a table marks, at most


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its confidence interval, ``mean ± half``."""

    mean: float
    half: float | None  # None: one seed has no spread
    seeds: int
    p: float | None = None  # two-sided, of Student's test that the mean is 0; None: nothing varies

    def excludes_zero(self) -> bool | None:
        """Return whether 0 lies outside the interval; None: there is no interval."""
        return None if self.half is None else abs(self.mean) > self.half


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Return the mean of n ≥ 1 seeds' values with Student's interval, t_{n-1} · s / √n, s² over n - 1."""
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n == 1:
        return Interval(float(array[0]), None, 1)
    # Imported here: scipy.stats takes a second, and a dry run needs none of it.
    from scipy.stats import t

    mean, error = float(array.mean()), float(array.std(ddof=1)) / sqrt(n)
    p = float(2.0 * t.sf(abs(mean / error), n - 1)) if error > 0.0 else None
    return Interval(mean, float(t.ppf(0.5 + level / 2, n - 1)) * error, n, p)


def paired_difference(
    ours: Mapping[int, float], theirs: Mapping[int, float], level: float = LEVEL
) -> Interval | None:
    """Return the mean of ``ours - theirs`` over the seeds that both have; None: there is no such seed."""
    shared = [seed for seed in ours if seed in theirs]
    return interval([ours[seed] - theirs[seed] for seed in shared], level) if shared else None


def discoveries(family: Sequence[float]) -> list[bool]:
    """Return which p-values of a family of tests are significant, by Benjamini and Hochberg."""
    from scipy.stats import false_discovery_control

    if not family:
        return []
    return [bool(q <= FALSE_DISCOVERY_RATE) for q in false_discovery_control(family, method="bh")]
