"""A mean without clients that pull it along one direction: `[N, M, C]` to `[M, C]`.

I. Diakonikolas, G. Kamath, D. M. Kane, J. Li, A. Moitra and A. Stewart, "Being Robust (in High Dimensions)
Can Be Practical", ICML 2017, arXiv 1703.00893; with weights as in I. Diakonikolas and D. M. Kane, "Recent
Advances in Algorithmic High-Dimensional Robust Statistics", 2019, arXiv 1911.05911.
"""

from __future__ import annotations

import numpy as np

_BLOCK = 1_000_000  # elements of a float64 block: 8 MB, so that one stays in cache
_NO_SPREAD = 1e-12  # variances below this are rounding of float32 probabilities
_EQUAL = 1e-4  # variances that differ by less than this share have no order: rounding would choose one
_GONE = 1e-3  # who has less than this share of the heaviest's weight is out, as are those who tie with it


def spectral_filter(points: np.ndarray, poisoned: float) -> tuple[np.ndarray, np.ndarray]:
    """Return for every sample the mean of the remaining clients, `[M, C]`, and their weights, `[N, M]`.

    For every sample, with weights ``w_n = 1/N`` at first::

        μ = Σ w_n x_n / Σ w_n,   Σ = Σ w_n (x_n − μ)(x_n − μ)ᵀ / Σ w_n
        v = the direction in which Σ is largest
        τ_n = (vᵀ(x_n − μ))²
        w_n ← w_n (1 − s · τ_n / max_m τ_m)          s = 1; less in the step that takes the last of 2ε

    Poisoned clients that agree stretch Σ towards them, and lose more weight than honest ones, which lose at
    most ε before. So a mass of 2ε is taken, and the rest is honest where honest predictions are close.
    Equally large directions all count, so no sign or basis of a linear algebra library decides anything.

    Args:
        points: `[N, M, C]`.
        poisoned: ε, the share of arbitrary clients, below ½; 0: the plain mean.
    """
    clients, samples, classes = points.shape
    step = max(1, _BLOCK // (clients * classes))
    mean, weights = np.empty((samples, classes)), np.empty((clients, samples))
    for start in range(0, samples, step):
        block = slice(start, start + step)
        x = points[:, block].transpose(1, 0, 2).astype(np.float64)
        w = _filter(x, 2 * poisoned)
        weights[:, block] = w.T
        mean[block] = np.matmul(w[:, None, :], x)[:, 0]
    return mean, weights


def _filter(x: np.ndarray, budget: float) -> np.ndarray:
    """Return weights `[M, N]`, rows that sum to 1, of samples-first points `[M, N, C]`.

    Each step but the last removes the farthest client, so there are at most N.
    """
    samples, clients, _ = x.shape
    weights = np.full((samples, clients), 1.0 / clients)
    left = np.full(samples, budget)
    at_work = np.flatnonzero(left > 0)
    while len(at_work):
        w = weights[at_work]
        scores = np.where(w > 0, _scores(x[at_work] if len(at_work) < samples else x, w), 0.0)
        farthest = scores.max(axis=1, keepdims=True)
        taken = w * np.divide(scores, farthest, out=np.zeros_like(scores), where=farthest > 0)
        total = taken.sum(axis=1)
        share = np.divide(left[at_work], total, out=np.ones_like(total), where=total > left[at_work])
        w = w - share[:, None] * taken
        w[w < _GONE * w.max(axis=1, keepdims=True)] = 0.0
        weights[at_work] = w
        left[at_work] -= share * total
        at_work = at_work[(share == 1.0) & (total > 0) & (left[at_work] > 0)]
    return weights / weights.sum(axis=1, keepdims=True)


def _scores(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return each client's squared distance to the mean along the largest directions, `[M, N]`."""
    clients, classes = x.shape[1:]
    w = w / w.sum(axis=1, keepdims=True)
    difference = x - np.matmul(w[:, None, :], x)
    a = np.sqrt(w)[:, :, None] * difference
    if classes <= clients:
        variances, directions = np.linalg.eigh(np.matmul(a.transpose(0, 2, 1), a))
    else:  # the same variances from the smaller matrix; a direction is aᵀu / √λ
        variances, left = np.linalg.eigh(np.matmul(a, a.transpose(0, 2, 1)))
        directions = np.matmul(a.transpose(0, 2, 1), left)
        directions /= np.sqrt(np.maximum(variances, _NO_SPREAD))[:, None]
    largest = variances[:, -1:]
    counts = (variances >= (1 - _EQUAL) * largest) & (largest > _NO_SPREAD)
    several = max(1, int(counts.sum(axis=1).max()))  # nearly always one
    along = np.matmul(difference, directions[:, :, -several:])
    return np.matmul(along**2, counts[:, -several:, None] * 1.0)[:, :, 0]
