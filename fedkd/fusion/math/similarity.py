"""Distances of clients' knowledge: `d[n, m]`, receiver `n` first, `d[n, n] = 0`."""

from collections.abc import Callable, Iterator

import numpy as np

from fedkd.fusion.math.distribution import expertise, smooth

ALL = slice(None)
_ROUNDING = 1e-10  # smaller distances are rounding of long sums, which a large β would amplify
_BLOCK = 4_000_000  # elements of a float64 block: 32 MB


def kl(p: np.ndarray, receivers: slice = ALL) -> np.ndarray:
    """Return ``KL(p_n ‖ p_m)`` of positive distributions `[N, C]` for some receivers n, `[n, N]`.

    Row by row, so that memory stays at N·C and equal distributions have distance exactly 0.
    """
    log_p = np.log(p)
    d = np.empty((len(p[receivers]), len(p)))
    for row, n in zip(d, range(len(p))[receivers], strict=True):
        row[:] = (log_p[n] - log_p) @ p[n]
    return np.maximum(d, 0.0, out=d)


def class_kl(predictions: np.ndarray) -> np.ndarray:
    """Return `kl` between smoothed mean predictions, KnFu's distance, of `[N, M, C]`, `[N, N]`."""
    return kl(expertise("soft", predictions))


def reverse_kl(p: np.ndarray, receivers: slice = ALL) -> np.ndarray:
    """Return ``KL(p_m ‖ p_n)``, sender first: it tolerates a sender that knows more classes, `[n, N]`."""
    if receivers == ALL:
        return kl(p).T
    log_p = np.log(p)
    d = np.stack([((log_p - log_p[n]) * p).sum(axis=1) for n in range(len(p))[receivers]])
    return np.maximum(d, 0.0)


def symmetric_kl(p: np.ndarray, receivers: slice = ALL) -> np.ndarray:
    """Return the mean of both directions, `[n, N]`."""
    d = kl(p, receivers)
    return (d + (d.T if receivers == ALL else reverse_kl(p, receivers))) / 2


def jensen_shannon(p: np.ndarray, receivers: slice = ALL) -> np.ndarray:
    """Return the Jensen–Shannon divergence in nats, `[n, N]`, between 0 and ln 2."""
    log_p = np.log(p)
    d = np.empty((len(p[receivers]), len(p)))
    for row, n in zip(d, range(len(p))[receivers], strict=True):
        log_middle = np.log((p[n] + p) / 2)
        row[:] = ((log_p[n] - log_middle) @ p[n] + ((log_p - log_middle) * p).sum(axis=1)) / 2
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


DIVERGENCES: dict[str, Callable[[np.ndarray, slice], np.ndarray]] = {
    "kl": kl,
    "reverse": reverse_kl,
    "symmetric": symmetric_kl,
    "js": jensen_shannon,
}
"""Divergences between class distributions `[N, C]` for some receivers, by name."""


def _blocks(predictions: np.ndarray) -> Iterator[np.ndarray]:
    """Yield blocks of samples in float64, to limit memory."""
    clients, samples, classes = predictions.shape
    step = max(1, _BLOCK // (clients * classes))
    for start in range(0, samples, step):
        yield predictions[:, start : start + step].astype(np.float64)
