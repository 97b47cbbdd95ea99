"""From distances to weights: who a receiver listens to, and how much."""

import numpy as np

LOG10_BETA = (-6.0, 6.0)
"""Range of β in the search for a number of neighbours."""
BISECTIONS = 50


def uniform(clients: int) -> np.ndarray:
    """Return equal weights of all senders, `[N, N]`."""
    return np.full((clients, clients), 1.0 / clients)


def effectiveness(
    d: np.ndarray,
    beta: float | np.ndarray,
    *,
    keep: np.ndarray | None = None,
    log_prior: np.ndarray | None = None,
) -> np.ndarray:
    """Return ``W[n, m] ∝ keep[n, m] · prior[m] · exp(−β d[n, m])``, rows summing to 1, by log-sum-exp.

    Args:
        d: Distances, receiver first, `[N, N]`.
        beta: β ≥ 0, one or each receiver's own, `[N, 1]`; 0 ignores the distances.
        keep: Senders of each receiver, `[N, N]` bool, with the diagonal.
        log_prior: Logarithm of a factor per sender, `[N]` (see `log_prior`).
    """
    with np.errstate(over="ignore"):  # β near the largest float: −inf, a weight of 0
        score = -beta * d
    if log_prior is not None:
        score = score + log_prior
    if keep is not None:
        score = np.where(keep, score, -np.inf)
    weights = np.exp(score - score.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def matched_beta(
    d: np.ndarray, perplexity: float, *, keep: np.ndarray | None = None, log_prior: np.ndarray | None = None
) -> np.ndarray:
    """Return the β of each receiver at which its effective neighbours are `perplexity` ≥ 1, `[N, 1]`.

    The number falls with β, so bisection of log β finds it, as t-SNE finds its widths (van der Maaten and
    Hinton 2008). A receiver with fewer at β = 0 hears all alike; one with more at every β gets the largest.
    The other arguments are those of `effectiveness`.
    """

    def neighbours(beta: np.ndarray) -> np.ndarray:
        return effective_neighbours(effectiveness(d, beta, keep=keep, log_prior=log_prior))

    low, high = (np.full(len(d), exponent) for exponent in LOG10_BETA)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        too_many = neighbours(10.0 ** middle[:, None]) > perplexity
        low, high = np.where(too_many, middle, low), np.where(too_many, high, middle)
    few = neighbours(np.zeros((len(d), 1))) <= perplexity
    return np.where(few, 0.0, 10.0**high)[:, None]


def log_prior(
    clients: int,
    *,
    samples: np.ndarray | None = None,
    age: np.ndarray | None = None,
    decay: float | None = None,
    freshness: np.ndarray | None = None,
) -> np.ndarray:
    """Return the logarithm of ``samples · ρ^age · s``, `[N]`; factors that are None are left out.

    Clients without training samples count as one; ρ is `decay` in (0, 1], s is `freshness`.
    """
    prior = np.zeros(clients)
    if samples is not None:
        prior += np.log(np.maximum(samples, 1))
    if age is not None and decay is not None:
        prior += age * np.log(decay)
    if freshness is not None:
        prior += np.log(freshness)
    return prior


def nearest(d: np.ndarray, count: int) -> np.ndarray:
    """Return the mask `[N, N]` of each receiver and its `count` nearest others, ties included."""
    keep = np.eye(len(d), dtype=bool)
    if 0 < count < len(d):
        others = np.where(keep, np.inf, d)
        last = np.partition(others, count - 1, axis=1)[:, count - 1 : count]
        keep |= others <= last
    elif count >= len(d):
        keep[:] = True
    return keep


def within(d: np.ndarray, threshold: float, kind: str) -> np.ndarray:
    """Return the mask `[N, N]` of each receiver and the others with ``d ≤ τ``.

    τ is the quantile of order `threshold` of the distances, or this multiple of their median.
    """
    keep = np.eye(len(d), dtype=bool)
    between = d[~keep]
    if between.size:
        tau = np.quantile(between, threshold) if kind == "quantile" else threshold * np.median(between)
        keep |= d <= tau
    return keep


def effective_neighbours(weights: np.ndarray) -> np.ndarray:
    """Return ``exp(H(W_n))``, `[N]`, from 1 (listens to one client) to N (listens to all alike)."""
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    return np.exp(-(weights * logs).sum(axis=1))
