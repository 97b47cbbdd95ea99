"""Means by label, over a client's samples and over clients."""

import numpy as np


def mean_of_label(values: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the mean of `values` `[S, K]` over the samples of each label, `[C, K]` float32; else 0."""
    sums = np.zeros((classes, values.shape[1]))
    np.add.at(sums, labels, values)
    counts = np.bincount(labels, minlength=classes)
    return (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)


def mean_by_label(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return ``Σ_n w[n, c] v[n, c] / Σ_n w[n, c]`` of v `[N, C, K]`, w `[N, C]`; 0 without weight."""
    total = np.einsum("nc,nck->ck", weights, values, dtype=np.float64)
    return _divide(total, weights.sum(axis=0, dtype=np.float64))


def mean_by_label_of_others(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return, for each client, `mean_by_label` over all the others, `[N, C, K]` float32.

    A difference to the total would keep the rounding of the client's own values, which may be far larger.
    """
    totals = _sum_of_others(weights[..., None].astype(np.float64) * values)
    return _divide(totals, _sum_of_others(weights.astype(np.float64)))


def _sum_of_others(array: np.ndarray) -> np.ndarray:
    others = np.zeros_like(array)
    np.cumsum(array[:-1], axis=0, out=others[1:])
    others[:-1] += np.cumsum(array[:0:-1], axis=0)[::-1]
    return others


def _divide(totals: np.ndarray, weights: np.ndarray) -> np.ndarray:
    mean = np.divide(totals, weights[..., None], out=np.zeros_like(totals), where=weights[..., None] > 0)
    return mean.astype(np.float32)
