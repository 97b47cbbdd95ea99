"""Class distributions `p_n`: what the server takes a client's knowledge to be about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedkd.fusion.roster import enrol

EPSILON = {"soft": 1e-6, "hard": 1e-2, "shared": 1e-6, "calibrated": 1e-6}
"""Default smoothing. A histogram of M votes has real zeros, so `hard` needs more."""


def estimate(kind: str, predictions: np.ndarray, label_counts: np.ndarray | None = None) -> np.ndarray:
    """Return each client's class distribution, before calibration and smoothing, `[N, C]` float64.

    Args:
        kind: `soft` and `calibrated` (mean prediction), `hard` (share of the votes) or `shared` (the true
            label histogram, which only an ablation may know).
        predictions: Probabilities on the transfer set, `[N, M, C]`.
        label_counts: Training samples per class, `[N, C]` (`shared`).
    """
    if kind == "shared":
        if label_counts is None:
            raise ValueError("the shared distribution needs label_counts")
        counts = np.asarray(label_counts, dtype=np.float64)
        return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    if kind == "hard":
        return _vote_share(predictions)
    return predictions.mean(axis=1, dtype=np.float64)


def expertise(
    kind: str, predictions: np.ndarray, label_counts: np.ndarray | None, epsilon: float | None
) -> np.ndarray:
    """Return the positive share of each class in each client's knowledge, `[N, C]` float64.

    Args:
        kind: As for `estimate`; `calibrated` is that here.
        predictions: Probabilities on the transfer set, `[N, M, C]`.
        label_counts: Training samples per class, `[N, C]` (`shared`).
        epsilon: Smoothing; None: what suits the kind.
    """
    p = estimate(kind, predictions, label_counts)
    if kind == "calibrated":
        p = calibrate(p)
    return smooth(p, EPSILON[kind] if epsilon is None else epsilon)


def _vote_share(predictions: np.ndarray) -> np.ndarray:
    clients, samples, classes = predictions.shape
    cell = predictions.argmax(axis=-1) + classes * np.arange(clients)[:, None]
    votes = np.bincount(cell.ravel(), minlength=clients * classes).reshape(clients, classes)
    return votes / samples


def calibrate(p: np.ndarray) -> np.ndarray:
    """Divide by the transfer set's mean prediction and renormalise, `[N, C]`.

    What everybody predicts often says something about the transfer set, not about a client.
    """
    mean = p.mean(axis=0)
    ratio = np.divide(p, mean, out=np.zeros_like(p), where=mean > 0)
    return ratio / ratio.sum(axis=1, keepdims=True)


def smooth(p: np.ndarray, epsilon: float) -> np.ndarray:
    """Return ``(p + ε) / Σ(p + ε)`` over the last axis: no zero is left for a logarithm to meet."""
    p = p + epsilon
    return p / p.sum(axis=-1, keepdims=True)


def moving_average(
    p: np.ndarray,
    clients: Sequence[int],
    memory: Mapping[str, np.ndarray],
    momentum: float,
    fresh: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Average each client's distribution over the rounds it took part in.

    ``p̂_n ← μ p̂_n + (1 − μ) p_n``, starting from the first `p_n` seen.

    Args:
        p: This round's distributions, `[N, C]`.
        clients: Whose they are, ascending, N indices.
        memory: What this function returned last; empty at first.
        momentum: μ.
        fresh: Which rows are of this round, `[N]` bool; a stale row counted once already and leaves its
            average as it is. None: all.

    Returns:
        The averages of `clients`, `[N, C]`, and the memory: ``clients`` (ascending indices of everyone seen
        so far, `[K]`) and ``distribution`` (their averages, `[K, C]`).
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
