"""Effective knowledge: every receiver's weighted mean of all predictions."""

from __future__ import annotations

import numpy as np


def combine(weights: np.ndarray, predictions: np.ndarray, expertise: np.ndarray | None = None) -> np.ndarray:
    """Return ``K_n[i] = Σ_m W[n, m] · q_m[i]`` as one matrix product, `[N, M, C]` float32.

    With `expertise` a sender counts, class by class, for as much as it knows of that class:
    ``K_n[i, c] ∝ Σ_m W[n, m] e_m[c] q_m[i, c] / Σ_k W[n, k] e_k[c]``, each row then renormalised. It
    factorises, so it is one matrix product as well.

    Args:
        weights: Rows sum to 1, `[N, N]`.
        predictions: Probabilities, `[N, M, C]` float32.
        expertise: Positive share of each class in each sender's knowledge, `[N, C]`; None: plain mean.
    """
    clients, samples, classes = predictions.shape
    if expertise is not None:
        predictions = predictions * expertise[:, None, :].astype(np.float32)
    fused = weights.astype(np.float32) @ predictions.reshape(clients, samples * classes)
    fused = fused.reshape(len(weights), samples, classes)
    if expertise is not None:
        fused /= (weights @ expertise)[:, None, :].astype(np.float32)
    fused /= fused.sum(axis=-1, keepdims=True)  # float32 sums of many clients drift off 1
    return fused
