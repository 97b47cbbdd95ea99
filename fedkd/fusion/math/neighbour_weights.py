"""Weights of a receiver's neighbours from distances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from fedkd.fusion.strategy import Knowledge

LOG10_BETA = (-6.0, 6.0)
"""Range of β in the search for a number of neighbours."""
BISECTIONS = 50


def uniform(clients: int) -> np.ndarray:
    """Return equal weights of all senders, `[N, N]`."""
    return np.full((clients, clients), 1.0 / clients)


def neighbour_weights(
    d: np.ndarray,
    beta: float,
    *,
    neighbours: int | None = None,
    threshold: float | None = None,
    threshold_kind: str = "quantile",
    perplexity: float | None = None,
    log_prior: np.ndarray | None = None,
    first: int = 0,
) -> np.ndarray:
    """Return the `effectiveness` of the senders that each receiver keeps, `[N, N]`.

    These are its nearest `neighbours` `within` the `threshold`; None keeps all. With a `perplexity` each
    receiver has its `matched_beta`. Distances of some receivers only, `[n, N]`, begin with the `first`; a
    threshold needs those of all.
    """
    keep = np.ones(d.shape, dtype=bool)
    if neighbours is not None:
        keep &= nearest(d, neighbours, first)
    if threshold is not None:
        keep &= within(d, threshold, threshold_kind)
    own = beta if perplexity is None else matched_beta(d, perplexity, keep=keep, log_prior=log_prior)
    return effectiveness(d, own, keep=keep, log_prior=log_prior)


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
    Hinton 2008). A receiver with fewer neighbours at β = 0 weighs all equally; one with more at every β gets
    the largest β. The other arguments are those of `effectiveness`.
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


def log_prior(knowledge: Knowledge, decay: float | None, *, by_size: bool = False) -> np.ndarray:
    """Return the logarithm of ``samples · ρ^age · s``, `[N]`; factors that are None are left out.

    Numbers of samples count with `by_size`, at least 1 each; ρ is `decay` in (0, 1], s is the freshness.
    """
    prior = np.zeros(len(knowledge.clients))
    if by_size:
        prior += np.log(np.maximum(knowledge.samples, 1))
    if knowledge.age is not None and decay is not None:
        prior += knowledge.age * np.log(decay)
    if knowledge.freshness is not None:
        prior += np.log(knowledge.freshness)
    return prior


def nearest(d: np.ndarray, count: int, first: int = 0) -> np.ndarray:
    """Return the mask `[n, N]` of each receiver and its `count` nearest others, ties included.

    The receivers of `d` are consecutive clients from the `first`.
    """
    keep = np.eye(len(d), d.shape[1], k=first, dtype=bool)
    if 0 < count < d.shape[1]:
        others = np.where(keep, np.inf, d)
        last = np.partition(others, count - 1, axis=1)[:, count - 1 : count]
        keep |= others <= last
    elif count >= d.shape[1]:
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
    """Return ``exp(H(W_n))``, `[N]`, from 1 (a single sender) to N (equal weights of all)."""
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    return np.exp(-(weights * logs).sum(axis=1))
