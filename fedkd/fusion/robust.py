"""Means that a minority of arbitrary clients cannot move far: `[N, M, C]` to `[M, C]`, sample by sample."""

from __future__ import annotations

import numpy as np

_BLOCK = 1_000_000  # elements of a float64 block: 8 MB, so that one stays in cache
_COINCIDE = 1e-12  # closer to a client than this is at it


def median(points: np.ndarray) -> np.ndarray:
    """Return the median over clients of every coordinate, `[M, C]`.

    It lies between the honest clients' extremes as long as they are the majority.
    """
    return np.median(np.ascontiguousarray(np.moveaxis(points, 0, -1)), axis=-1)


def trimmed_mean(points: np.ndarray, trim: float) -> np.ndarray:
    """Return the mean of every coordinate without its ``⌊trim · N⌋`` lowest and highest values, `[M, C]`.

    It lies between the honest clients' extremes as long as at most ``⌊trim · N⌋`` clients are not; trim < ½.
    """
    clients = len(points)
    cut = int(trim * clients + 1e-9)  # 0.29 · 100 is a hair below 29
    if cut == 0:
        return points.mean(axis=0, dtype=np.float64)
    ordered = np.partition(np.moveaxis(points, 0, -1), (cut, clients - cut - 1), axis=-1)
    return ordered[..., cut : clients - cut].mean(axis=-1, dtype=np.float64)


def geometric_median(points: np.ndarray, *, tolerance: float, max_iterations: int) -> np.ndarray:
    """Return for every sample the point with the least sum of distances to all clients, `[M, C]` float64.

    Weiszfeld's iteration ``y ← Σ x_n / ‖x_n − y‖ / Σ 1 / ‖x_n − y‖`` from the mean, as amended by Vardi and
    Zhang ("The multivariate L1-median and associated data depth", PNAS 2000) so that it does not stop at a
    client's point. Only half of the clients could move it arbitrarily far. A sample is done when no
    coordinate moves by more than the tolerance.
    """
    clients, samples, classes = points.shape
    step = max(1, _BLOCK // (clients * classes))
    result = np.empty((samples, classes))
    for start in range(0, samples, step):
        x = points[:, start : start + step].transpose(1, 0, 2).astype(np.float64)
        y = x.mean(axis=1)
        moving = np.arange(len(x))
        for _ in range(max_iterations):
            x_left, y_left = x[moving] if len(moving) < len(x) else x, y[moving]
            updated = _weiszfeld_step(x_left, y_left)
            y[moving] = updated
            moving = moving[np.abs(updated - y_left).max(axis=-1) > tolerance]
            if not len(moving):
                break
        result[start : start + step] = y
    return result


def _weiszfeld_step(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    difference = x - y[:, None, :]
    distance = np.sqrt(np.einsum("mnc,mnc->mn", difference, difference))
    apart = distance > _COINCIDE
    weight = np.divide(1.0, distance, out=np.zeros_like(distance), where=apart)
    pull = np.matmul(weight[:, None, :], difference)[:, 0]  # Σ (x_n − y) / ‖x_n − y‖
    total = weight.sum(axis=1)
    strength = np.sqrt((pull**2).sum(axis=-1))
    # Those at y itself hold it back: they let go only of a pull that is stronger than they are many.
    held = np.divide((~apart).sum(axis=1), strength, out=np.ones_like(strength), where=strength > 0)
    share = np.divide(
        1.0 - np.minimum(held, 1.0), total, out=np.zeros_like(total), where=(total > 0) & (strength > 0)
    )
    return y + share[:, None] * pull


def complete(values: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return rows `[M, C]` of non-negative values as distributions: the rest to 1 is spread as the mean is.

    Clients that are each certain of another class leave a median near 0 at every class. Divided by its sum
    it would be certain of a class at random. Its rest follows the mean instead, so no minority gains more
    than in the mean. Rows of more than 1 are divided by their sum.
    """
    total = values.sum(axis=-1, keepdims=True)
    return (values + np.maximum(1.0 - total, 0.0) * mean) / np.maximum(total, 1.0)
