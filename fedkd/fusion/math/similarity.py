"""Distances of clients' knowledge: `d[n, m]`, receiver `n` first, `d[n, n] = 0`."""

from collections.abc import Callable, Iterator

import numpy as np

from fedkd.fusion.math.distribution import expertise, smooth

_ROUNDING = 1e-10  # smaller distances are rounding of long sums, which a large β would amplify
_BLOCK = 4_000_000  # elements of a float64 block: 32 MB


def kl(p: np.ndarray) -> np.ndarray:
    """Return ``KL(p_n ‖ p_m)``, `[N, N]`, of positive distributions `[N, C]`.

    Row by row, so that memory stays at N·C and equal distributions have distance exactly 0.
    """
    log_p = np.log(p)
    d = np.stack([(log_p[n] - log_p) @ p[n] for n in range(len(p))])
    return np.maximum(d, 0.0)


def class_kl(predictions: np.ndarray) -> np.ndarray:
    """Return `kl` between smoothed mean predictions, KnFu's distance, of `[N, M, C]`, `[N, N]`."""
    return kl(expertise("soft", predictions))


def symmetric_kl(p: np.ndarray) -> np.ndarray:
    """Return the mean of both directions, `[N, N]`."""
    d = kl(p)
    return (d + d.T) / 2


def jensen_shannon(p: np.ndarray) -> np.ndarray:
    """Return the Jensen–Shannon divergence in nats, `[N, N]`, between 0 and ln 2."""
    log_p = np.log(p)
    d = np.empty((len(p), len(p)))
    for n in range(len(p)):
        log_middle = np.log((p[n] + p) / 2)
        d[n] = ((log_p[n] - log_middle) @ p[n] + ((log_p - log_middle) * p).sum(axis=1)) / 2
    return np.maximum(d, 0.0)


def prediction_kl(predictions: np.ndarray, epsilon: float) -> np.ndarray:
    """Return the mean over samples of ``KL(q_n[i] ‖ q_m[i])`` of probabilities `[N, M, C]`, `[N, N]`.

    It is ``(Σ q_n log q_n − Q (log Q)ᵀ) / M``: matrix products, never an N×N×M array. ε smooths each row,
    which bounds the KL by about ``−log ε``.
    """
    clients, samples, _ = predictions.shape
    cross = np.zeros((clients, clients))
    for q in _blocks(predictions):
        q = smooth(q, epsilon)
        cross += q.reshape(clients, -1) @ np.log(q).reshape(clients, -1).T
    d = (np.diag(cross)[:, None] - cross) / samples
    return np.where(d < _ROUNDING, 0.0, d)


def prediction_cosine(predictions: np.ndarray) -> np.ndarray:
    """Return 1 − the cosine of flattened predictions `[N, M, C]`; `[N, N]`, between 0 and 1."""
    products = gram(predictions)
    norm = np.sqrt(np.diag(products))
    d = 1.0 - products / np.outer(norm, norm)
    return np.where(d < _ROUNDING, 0.0, d)


def gram(predictions: np.ndarray) -> np.ndarray:
    """Return the inner products ``Σ_ic q_n[i,c] q_m[i,c]`` of predictions `[N, M, C]`; `[N, N]` float64."""
    clients = len(predictions)
    products = np.zeros((clients, clients))
    for q in _blocks(predictions):
        flat = q.reshape(clients, -1)
        products += flat @ flat.T
    return products


DIVERGENCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "kl": kl,
    "reverse": lambda p: kl(p).T,  # tolerates a sender that knows more classes than the receiver
    "symmetric": symmetric_kl,
    "js": jensen_shannon,
}
"""Divergences between class distributions `[N, C]`, by name."""


def _blocks(predictions: np.ndarray) -> Iterator[np.ndarray]:
    """Yield blocks of samples in float64, to limit memory."""
    clients, samples, classes = predictions.shape
    step = max(1, _BLOCK // (clients * classes))
    for start in range(0, samples, step):
        yield predictions[:, start : start + step].astype(np.float64)
