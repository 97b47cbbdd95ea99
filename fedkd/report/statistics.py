"""Error bars over seeds.

Settings with the same seed share data, partition and initial weights, so differences are paired by seed.

One 95 % interval in twenty excludes 0 by chance. A table marks differences that survive the correction of
Benjamini and Hochberg over all its differences of one metric. The correction bounds the expected share of
false marks, also under positive dependence, as with one baseline. Holm's correction would leave no mark in a
large table of three seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

LEVEL = 0.95
FEWEST_SEEDS = 3
"""Seeds from which a figure shows an interval: for two, Student's factor of 12.7 makes bands too wide."""
FALSE_DISCOVERY_RATE = 0.05  # upper bound of the expected share of false marks


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its confidence interval, ``mean ± half``."""

    mean: float
    half: float | None  # None for one seed
    seeds: int
    p: float | None = None  # two-sided, of Student's test that the mean is 0; None without variation

    def excludes_zero(self) -> bool | None:
        """Return whether 0 lies outside the interval; None without an interval."""
        return None if self.half is None else abs(self.mean) > self.half


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Return the mean of n ≥ 1 values with Student's interval, t_{n-1} · s / √n, s² over n - 1."""
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n == 1:
        return Interval(float(array[0]), None, 1)
    # Imported here: scipy.stats takes a second, and a dry run does without it.
    from scipy.stats import t

    mean, error = float(array.mean()), float(array.std(ddof=1)) / sqrt(n)
    p = float(2.0 * t.sf(abs(mean / error), n - 1)) if error > 0.0 else None
    return Interval(mean, float(t.ppf(0.5 + level / 2, n - 1)) * error, n, p)


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """Return the mean of ``ours - theirs`` over shared seeds; None without a shared seed."""
    shared = [seed for seed in ours if seed in theirs]
    return interval([ours[seed] - theirs[seed] for seed in shared]) if shared else None


def discoveries(family: Sequence[float]) -> list[bool]:
    """Return the significance of each p-value of a family of tests, by Benjamini and Hochberg."""
    from scipy.stats import false_discovery_control

    if not family:
        return []
    return [bool(q <= FALSE_DISCOVERY_RATE) for q in false_discovery_control(family, method="bh")]
