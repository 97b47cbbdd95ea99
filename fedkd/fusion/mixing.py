"""Who hears whom as a matrix, and how much each takes of each: pure functions of a graph.

Receivers are rows and senders columns. Everyone hears itself: the diagonal of a graph is true.
"""

from __future__ import annotations

import numpy as np


def is_mutual(heard: np.ndarray) -> bool:
    """Return whether everyone is heard by those whom it hears.

    Args:
        heard: The graph, `[N, N]` bool.
    """
    return bool((heard == heard.T).all())


def metropolis(heard: np.ndarray) -> np.ndarray:
    """Return ``P_nm = 1 / (1 + max(deg_n, deg_m))`` for linked pairs, the rest on the diagonal, `[N, N]`.

    P is symmetric and its rows and columns sum to 1, whatever the degrees, so that mixing keeps the mean.
    Rows divided by their sums would do so on regular graphs alone.

    Args:
        heard: A mutual graph, `[N, N]` bool; degrees do not count oneself.

    Raises:
        ValueError: The graph is not mutual.
    """
    if not is_mutual(heard):
        raise ValueError(
            "Metropolis weights are for graphs in which everyone is heard by those whom it hears"
        )
    degrees = heard.sum(axis=1) - 1
    mixing = np.where(heard, 1.0 / (1.0 + np.maximum(degrees[:, None], degrees[None, :])), 0.0)
    np.fill_diagonal(mixing, 0.0)
    np.fill_diagonal(mixing, 1.0 - mixing.sum(axis=1))
    return mixing


def push_sum(heard: np.ndarray) -> np.ndarray:
    """Return ``P_nm = 1 / (number that hear m, itself included)``, columns summing to 1, `[N, N]` float64.

    Everyone deals itself out evenly to those that hear it. Rows need not sum to 1: what is mixed along with a
    mass of 1 each, and divided by it, tends to the mean all the same.

    Args:
        heard: Any graph, `[N, N]` bool.
    """
    return heard / heard.sum(axis=0, keepdims=True)


def contraction(mixing: np.ndarray) -> float:
    """Return λ₂, by which one mixing brings clients nearer to their mean at least; 0 of a single client.

    It is the second largest singular value of a doubly stochastic matrix, which for a symmetric one is its
    second largest eigenvalue in size: ``‖P X − X̄‖ ≤ λ₂ ‖X − X̄‖``. 1: clients fall into parts.

    Args:
        mixing: P, `[N, N]`, rows and columns sum to 1.
    """
    apart = mixing - 1.0 / len(mixing)
    return float(np.linalg.norm(apart, ord=2))


def parts(heard: np.ndarray) -> list[tuple[int, ...]]:
    """Return the sets of clients that reach each other over links, whichever way they go, in client order.

    Args:
        heard: The graph, `[N, N]` bool.
    """
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
