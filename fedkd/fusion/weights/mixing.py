"""Graphs of clients as matrices, and mixing weights on them.

Receivers are rows and senders columns of a graph `[N, N]` bool with a true diagonal.
"""

import numpy as np


def is_undirected(heard: np.ndarray) -> bool:
    """Return whether all links go both ways."""
    return bool((heard == heard.T).all())


def metropolis_weights(heard: np.ndarray) -> np.ndarray:
    """Return ``P_nm = 1 / (1 + max(deg_n, deg_m))`` for linked pairs, the rest on the diagonal, `[N, N]`.

    P is symmetric and its rows and columns sum to 1, so mixing keeps the mean. The graph must be undirected.
    """
    if not is_undirected(heard):
        raise ValueError("Metropolis weights need an undirected graph")
    degrees = heard.sum(axis=1) - 1
    mixing = np.where(heard, 1.0 / (1.0 + np.maximum(degrees[:, None], degrees[None, :])), 0.0)
    np.fill_diagonal(mixing, 0.0)
    np.fill_diagonal(mixing, 1.0 - mixing.sum(axis=1))
    return mixing


def push_sum_weights(heard: np.ndarray) -> np.ndarray:
    """Return ``P_nm = 1 / (number of receivers of m, itself included)``, `[N, N]` float64.

    Columns sum to 1, but rows need not: values are mixed with an initial mass of 1, and the ratio tends to
    the mean.
    """
    return heard / heard.sum(axis=0, keepdims=True)


def contraction_factor(mixing: np.ndarray) -> float:
    """Return λ₂ of ``‖P X − X̄‖ ≤ λ₂ ‖X − X̄‖``, the second singular value of a doubly stochastic P.

    It is 0 for a single client and 1 for a disconnected graph.
    """
    apart = mixing - 1.0 / len(mixing)
    return float(np.linalg.norm(apart, ord=2))


def connected_components(heard: np.ndarray) -> list[tuple[int, ...]]:
    """Return the weakly connected components of clients, in client order."""
    linked = heard | heard.T
    left, found = set(range(len(heard))), []
    while left:
        start = min(left)
        part, edge = {start}, [start]
        while edge:
            near = set(np.flatnonzero(linked[edge.pop()]).tolist()) - part
            part |= near
            edge.extend(sorted(near))
        found.append(tuple(sorted(part)))
        left -= part
    return found
