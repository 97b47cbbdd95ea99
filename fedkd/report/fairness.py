"""Fairness over clients: how evenly a figure of theirs is spread.

All are pure functions of one value a client, ``[N]`` float64 with N ≥ 1.
"""

from collections.abc import Sequence
from math import ceil

import numpy as np

WORST_SHARE = 0.1  # of clients in `worst_10`


def fairness(values: Sequence[float], *, lower_is_better: bool = False) -> dict[str, float]:
    """Return `worst_10`, and for values ≥ 0 that are not all 0 also `jain` and `gini`."""
    array = np.sort(np.asarray(values, dtype=np.float64))
    found = {"worst_10": worst_tenth(array[::-1] if lower_is_better else array)}
    if array[0] >= 0.0 and array[-1] > 0.0:
        found |= {"jain": jain_index(array), "gini": gini_coefficient(array)}
    return found


def worst_tenth(worst_first: np.ndarray) -> float:
    """Return the mean of the first ⌈N / 10⌉ values."""
    return float(worst_first[: ceil(WORST_SHARE * len(worst_first))].mean())


def jain_index(values: np.ndarray) -> float:
    """Return ``(Σ a)² / (N Σ a²)``, from 1/N (one client has all) to 1 (all have the same).

    Jain et al., "A Quantitative Measure of Fairness and Discrimination", DEC-TR-301, 1984.
    """
    scaled = values / values.max()  # squares of tiny values would be 0
    return float(scaled.sum() ** 2 / (len(scaled) * (scaled**2).sum()))


def gini_coefficient(ascending: np.ndarray) -> float:
    """Return ``Σ_ij |a_i − a_j| / (2 N² mean)`` of sorted values, from 0 (all the same) to 1 − 1/N."""
    n = len(ascending)
    ranks = 2 * np.arange(1, n + 1) - n - 1
    return float((ranks * ascending).sum() / (n * ascending.sum()))
