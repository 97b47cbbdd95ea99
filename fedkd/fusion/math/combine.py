"""Effective knowledge: every receiver's weighted mean of all predictions."""

import numpy as np

from fedkd.fusion.math.weight_blocks import fits_one_block

SPARSE = 1 / 32
"""Share of non-zero weights up to which products of these alone are quicker."""


def combine(weights: np.ndarray, predictions: np.ndarray, expertise: np.ndarray | None = None) -> np.ndarray:
    """Return ``K_n[i] = Σ_m W[n, m] · q_m[i]`` as one matrix product, `[N, M, C]` float32.

    With `expertise` a sender's weight depends on its share of the class: ``K_n[i, c] ∝ Σ_m W[n, m] e_m[c]
    q_m[i, c] / Σ_k W[n, k] e_k[c]``, with rows renormalised. Weights are `[N, N]`, predictions `[N, M, C]`
    float32, and expertise, the positive share of each class, `[N, C]`.
    """
    clients, samples, classes = predictions.shape
    if expertise is not None:
        predictions = predictions * expertise[:, None, :].astype(np.float32)
    fused = _product(weights.astype(np.float32), predictions.reshape(clients, samples * classes))
    fused = fused.reshape(len(weights), samples, classes)
    if expertise is not None:
        fused /= (weights @ expertise)[:, None, :].astype(np.float32)
    fused /= fused.sum(axis=-1, keepdims=True)  # float32 sums of many clients drift off 1
    return fused


def class_experts(weights: np.ndarray, predictions: np.ndarray, expertise: np.ndarray) -> np.ndarray:
    """Return ``F[i, c] ∝ Σ_m w_m e_m[c] q_m[i, c] / Σ_m w_m e_m[c]``, rows that sum to 1, `[M, C]` float32.

    `weights` w `[N]` sum to 1; `predictions` and `expertise` as for `combine`.
    """
    return combine(weights[None, :], predictions, expertise)[0]


def fill_in(targets: np.ndarray, experts: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Return ``(1 − g_n[i]) t_n[i] + g_n[i] F[i]``: experts fill in classes that a client lacks.

    ``g_n[i] = Σ_c need_n[c] F[i, c]`` with ``need_n[c] = 1 − min(1, C p_n[c])`` by the class distributions p
    `[N, C]`. Targets t are `[N, M, C]`, experts F `[M, C]`.
    """
    need = 1.0 - np.minimum(1.0, p.shape[1] * p)
    gate = (need @ experts.T.astype(np.float64)).astype(np.float32)[..., None]
    filled = (1 - gate) * targets + gate * experts
    return filled / filled.sum(axis=-1, keepdims=True)


def _product(weights: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """Return ``weights @ flat``; of many clients with few neighbours, from these alone."""
    if fits_one_block(len(flat)) or np.count_nonzero(weights) > SPARSE * weights.size:
        return weights @ flat
    fused = np.empty((len(weights), flat.shape[1]), dtype=np.float32)
    for row, into in zip(weights, fused, strict=True):
        senders = np.flatnonzero(row)
        np.matmul(row[senders], flat[senders], out=into)
    return fused
