"""Clients' losses on transfer samples, with or without labels."""

import numpy as np

from fedkd.fusion.math.probabilities import log_softmax


def sample_losses(logits: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Return the cross entropy of predictions `[N, M, C]` to labels `[M]`, `[N, M]` float64.

    Without labels it is the cross entropy to the others' mean, ``−Σ_c mean_{k≠m} q_k[i, c] · log q_m[i, c]``,
    so outliers lose, right or wrong; a single client has 0.
    """
    log_q = log_softmax(logits)
    if labels is not None:
        return -np.take_along_axis(log_q, labels[None, :, None], axis=-1)[..., 0]
    clients = len(log_q)
    if clients == 1:
        return np.zeros(log_q.shape[:2])
    q = np.exp(log_q)
    others = (q.sum(axis=0) - q) / (clients - 1)
    return -(np.maximum(others, 0.0) * log_q).sum(axis=-1)
