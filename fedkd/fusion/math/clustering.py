"""Deterministic k-means over clients."""

import numpy as np


def cluster(points: np.ndarray, clusters: int, *, max_iterations: int = 100) -> np.ndarray:
    """Return the membership matrix of k-means over points `[N, D]` float32, `[K, N]` float64.

    Row k holds 1 / (size of group k) for its points, so ``membership @ points`` are the centroids. There are
    fewer groups if fewer points differ; no group is empty. Only exact ties depend on order.
    """
    # By a power of two, which is exact: squares of the largest floats overflow.
    scaled = np.ldexp(points, -np.frexp(np.abs(points).max(initial=0.0))[1])
    centred = scaled - scaled.mean(axis=0)  # smaller numbers: less cancellation in differences of squares
    centres = centred[_farthest_points(centred, clusters)]
    group = np.full(len(points), -1)
    for _ in range(max_iterations):
        nearest = (centred @ centres.T - 0.5 * (centres**2).sum(axis=1)).argmax(axis=1)
        if (nearest == group).all():
            break
        group = nearest
        occupied = np.unique(group)  # a centre without points is dropped
        group = np.searchsorted(occupied, group)
        centres = _membership(group).astype(points.dtype) @ centred
    return _membership(group)


def _farthest_points(points: np.ndarray, count: int) -> list[int]:
    """Return the point farthest from the origin, then those farthest from all before."""
    distance = (points**2).sum(axis=1)
    chosen = [int(distance.argmax())]
    distance = ((points - points[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < count and distance.max() > 0:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(axis=1))
    return chosen


def _membership(group: np.ndarray) -> np.ndarray:
    member = group == np.arange(group.max() + 1)[:, None]
    return member / member.sum(axis=1, keepdims=True)
