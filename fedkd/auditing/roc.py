"""Figures of an attack from its scores of members and of non-members.

A higher score says "member". An attack answers "member" from a threshold on, so equal scores are answered
alike: its curve has a point for each distinct score.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.stats import beta, rankdata

CONFIDENCE = 0.95
BOOTSTRAP_DRAWS = 500
MOST_POINTS = 200
"""Points of a curve in `audit.json`."""


@dataclass(frozen=True)
class Bounds:
    """An estimate with the limits of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Curve:
    """A ROC curve, from (0, 0) to (1, 1): rates `[T]` float64 of false and true positives."""

    fpr: np.ndarray
    tpr: np.ndarray

    def tpr_at(self, fpr: float) -> float:
        """Return the largest true positive rate whose false positive rate is at most `fpr`."""
        return float(self.tpr[self.fpr <= fpr].max())

    @property
    def advantage(self) -> float:
        """The largest TPR − FPR (Yeom et al., CSF 2018)."""
        return float((self.tpr - self.fpr).max())

    def thinned(self) -> Self:
        """Return at most `MOST_POINTS` points, evenly spread over log FPR, with both ends."""
        if len(self.fpr) <= MOST_POINTS:
            return self
        wanted = np.concatenate([[0.0], np.logspace(-4, 0, MOST_POINTS - 1)])
        rows = np.unique(np.searchsorted(self.fpr, wanted, side="right") - 1)
        return replace(self, fpr=self.fpr[rows], tpr=self.tpr[rows])


def roc_curve(members: np.ndarray, others: np.ndarray) -> Curve:
    """Return the curve of scores `[n]` of members and `[m]` of non-members."""
    thresholds = np.unique(np.concatenate([members, others]))[::-1]

    def rate(scores: np.ndarray) -> np.ndarray:
        ascending = np.sort(scores)
        return 1.0 - np.searchsorted(ascending, thresholds, side="left") / len(scores)

    return Curve(np.concatenate([[0.0], rate(others)]), np.concatenate([[0.0], rate(members)]))


def area(members: np.ndarray, others: np.ndarray) -> float:
    """Return the area under the curve: the chance that a member scores higher, ties counted half."""
    ranks = rankdata(np.concatenate([members, others]))[: len(members)]
    n, m = len(members), len(others)
    return float((ranks.sum() - n * (n + 1) / 2) / (n * m))


def area_bounds(members: np.ndarray, others: np.ndarray, generator: np.random.Generator) -> Bounds:
    """Return the area with its bootstrap interval; members and non-members are drawn apart."""
    drawn = [
        area(generator.choice(members, len(members)), generator.choice(others, len(others)))
        for _ in range(BOOTSTRAP_DRAWS)
    ]
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Bounds(area(members, others), float(low), float(high))


def clopper_pearson(hits: int, trials: int) -> Bounds:
    """Return a share with its exact interval (Clopper and Pearson, Biometrika 1934)."""
    low, high = clopper_pearson_limits(np.array([hits]), trials)
    return Bounds(hits / trials, float(low[0]), float(high[0]))


def clopper_pearson_limits(hits: np.ndarray, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper limits `[T]` of shares with `hits` `[T]`, 97.5 % on each side."""
    tail = (1 - CONFIDENCE) / 2
    low = np.where(hits == 0, 0.0, beta.ppf(tail, np.maximum(hits, 1), trials - hits + 1))
    high = np.where(hits == trials, 1.0, beta.ppf(1 - tail, hits + 1, np.maximum(trials - hits, 1)))
    return low, high


def tpr_bounds(members: np.ndarray, others: np.ndarray, fpr: float) -> Bounds:
    """Return the TPR at a FPR of at most `fpr`, with its Clopper–Pearson interval."""
    found = roc_curve(members, others).tpr_at(fpr)
    return clopper_pearson(round(found * len(members)), len(members))


def epsilon_bound(
    members: np.ndarray, others: np.ndarray, delta: float, generator: np.random.Generator
) -> float:
    """Return a lower bound of ε of (ε, δ)-differential privacy, ≥ 0, at 95 % confidence.

    Every (ε, δ)-private training has TPR ≤ e^ε FPR + δ, and TNR ≤ e^ε FNR + δ (Kairouz et al., ICML 2015). So
    ``ln((TPR_low − δ) / FPR_high)`` bounds ε, with Clopper–Pearson limits of 97.5 % each. One random
    half of the samples chooses the threshold and the inequality. The other half gives the limits. Halves of n
    members and n non-members show at most ``ln(l / (1 − l))`` with ``l = 0.025^(1/n)``.
    """
    ours, theirs = generator.permutation(members), generator.permutation(others)
    n, m = len(ours) // 2, len(theirs) // 2
    thresholds = np.unique(np.concatenate([ours[:n], theirs[:m]]))
    found = _bounds(ours[:n], theirs[:m], thresholds, delta)
    inequality, place = np.unravel_index(int(found.argmax()), found.shape)
    kept = _bounds(ours[n:], theirs[m:], thresholds[[place]], delta)
    return max(0.0, float(kept[inequality, 0]))


def _bounds(members: np.ndarray, others: np.ndarray, thresholds: np.ndarray, delta: float) -> np.ndarray:
    """Return the bounds `[2, T]` of both inequalities at thresholds `[T]`; −∞ where one says nothing."""
    n, m = len(members), len(others)
    right = n - np.searchsorted(np.sort(members), thresholds, side="left")
    wrong = m - np.searchsorted(np.sort(others), thresholds, side="left")
    found = []
    for hits, trials, errors, of in ((right, n, wrong, m), (m - wrong, m, n - right, n)):
        low = clopper_pearson_limits(hits, trials)[0] - delta
        high = clopper_pearson_limits(errors, of)[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(np.where(low > 0, np.log(low / high), -np.inf))
    return np.array(found)
