"""Influence of each sender on a receiver's guidance."""

import numpy as np

MOST_CLIENTS = 50
MOST_TERMS = 30_000_000
"""Clients N, and N²·M·C, up to which the influence is computed in passing: a tenth of a second on a core."""


def leave_one_out_shift(weights: np.ndarray, mixed: np.ndarray) -> np.ndarray:
    """Return the shift of targets when a sender is left out and the others share its weight, `[N, N]`.

    The mean total variation between ``K_n = Σ_m W_nm q_m`` and the same mix without sender m::

        W_nm / (1 − W_nm) · mean_i ½ Σ_c |q_m[i, c] − K_n[i, c]|

    It is in [0, 1], and NaN for a single sender. Unlike the weight, it is small for a sender that repeats the
    others. Weights `[N, N]` have the receiver first; `mixed` are the probabilities `[N, M, C]`.
    """
    clients, samples = len(weights), mixed.shape[1]
    flat = mixed.reshape(clients, -1).astype(np.float32)
    if samples == 0:
        return np.full((clients, clients), np.nan)
    apart = np.empty((clients, clients))
    for receiver, row in enumerate(weights.astype(np.float32)):
        guidance = (row[:, None] * flat).sum(axis=0)
        apart[receiver] = np.abs(flat - guidance).sum(axis=1, dtype=np.float64) / (2 * samples)
    rest = 1.0 - weights
    share = np.divide(weights, rest, out=np.full(weights.shape, np.nan), where=rest > 1e-12)
    return np.minimum(share * apart, 1.0)


def leave_one_out_is_cheap(mixed: np.ndarray) -> bool:
    """Return whether `leave_one_out_shift` is cheap enough to compute in every round."""
    return len(mixed) <= MOST_CLIENTS and len(mixed) * mixed.size <= MOST_TERMS
