"""Class distributions `p_n`: the server's estimate of each client's classes."""

from collections.abc import Mapping, Sequence

import numpy as np

from fedkd.fusion.math.client_index import enrol

EPSILON = {"soft": 1e-6, "hard": 1e-2, "shared": 1e-6, "calibrated": 1e-6}
"""Default smoothing. A histogram of M votes has real zeros, so `hard` needs more."""


def estimate(kind: str, predictions: np.ndarray, label_counts: np.ndarray | None = None) -> np.ndarray:
    """Return each client's class distribution, before calibration and smoothing, `[N, C]` float64.

    The mean of the predictions `[N, M, C]` for `soft` and `calibrated`, the share of votes for `hard`, the
    label histogram of `label_counts` `[N, C]` for `shared`.
    """
    if kind == "shared":
        if label_counts is None:
            raise ValueError("the shared distribution needs label_counts")
        counts = np.asarray(label_counts, dtype=np.float64)
        return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    if kind == "hard":
        clients, samples, classes = predictions.shape
        cell = predictions.argmax(axis=-1) + classes * np.arange(clients)[:, None]
        return np.bincount(cell.ravel(), minlength=clients * classes).reshape(clients, classes) / samples
    return predictions.mean(axis=1, dtype=np.float64)


def expertise(
    kind: str,
    predictions: np.ndarray,
    label_counts: np.ndarray | None = None,
    epsilon: float | None = None,
) -> np.ndarray:
    """Return the positive share of each class in each client's knowledge, `[N, C]` float64.

    As `estimate`, then `finished`.
    """
    return finished(kind, estimate(kind, predictions, label_counts), epsilon)


def finished(kind: str, p: np.ndarray, epsilon: float | None) -> np.ndarray:
    """Return estimates `[N, C]` calibrated and smoothed; `epsilon` None: the kind's default."""
    if kind == "calibrated":
        p = calibrate(p)
    return smooth(p, EPSILON[kind] if epsilon is None else epsilon)


def calibrate(p: np.ndarray) -> np.ndarray:
    """Divide by the federation's mean, which describes the transfer set, and renormalise, `[N, C]`."""
    mean = p.mean(axis=0)
    ratio = np.divide(p, mean, out=np.zeros_like(p), where=mean > 0)
    return ratio / ratio.sum(axis=1, keepdims=True)


def smooth(p: np.ndarray, epsilon: float) -> np.ndarray:
    """Return ``(p + ε) / Σ(p + ε)`` over the last axis, for finite logarithms."""
    p = p + epsilon
    return p / p.sum(axis=-1, keepdims=True)


def moving_average(
    p: np.ndarray,
    clients: Sequence[int],
    memory: Mapping[str, np.ndarray],
    momentum: float,
    fresh: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return each client's distribution averaged over its rounds, `[N, C]`, and the memory.

    ``p̂_n ← μ p̂_n + (1 − μ) p_n``, starting from the first `p_n` seen. `memory` is that of the last call.
    Rows `[N]` that are not `fresh` counted before and change nothing.
    """
    roster = enrol(memory, clients)
    everyone = np.zeros((len(roster.clients), p.shape[1]))
    if len(roster.known):
        everyone[roster.known] = memory["distribution"]
    step = np.full(len(p), 1.0 - momentum)
    if fresh is not None:
        step[~fresh] = 0.0
    step[~np.isin(roster.present, roster.known)] = 1.0
    average = (1.0 - step)[:, None] * everyone[roster.present] + step[:, None] * p
    everyone[roster.present] = average
    return average, {"clients": roster.clients, "distribution": everyone}
