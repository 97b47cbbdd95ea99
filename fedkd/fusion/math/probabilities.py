"""Logits to probabilities."""

import numpy as np


def finite_logits(logits: np.ndarray) -> np.ndarray:
    """Return a float32 copy in which infinities are large numbers.

    A float16 upload overflows to infinity above 65504; that bound preserves the largest class.
    """
    bound = 65504.0 if logits.dtype == np.float16 else 1e30
    copy = logits.astype(np.float32)
    return np.clip(copy, -bound, bound, out=copy)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return ``softmax(logits / temperature)`` over the last axis in float32."""
    q = finite_logits(logits)
    q -= q.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):  # a tiny temperature sends other classes to -inf, hence to 0
        q /= temperature
    np.exp(q, out=q)
    q /= q.sum(axis=-1, keepdims=True)
    return q


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return ``log softmax(logits)`` over the last axis, in float64 and always finite.

    float64 logits must be finite; infinities of other types count as large numbers.
    """
    z = (logits if logits.dtype == np.float64 else finite_logits(logits)).astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return z


def row_kl(p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Return ``KL(p ‖ q)`` in nats, ≥ 0, of rows p and log q `[..., C]`, `[...]` float64; 0 log 0 is 0."""
    p = np.asarray(p, dtype=np.float64)
    log_p = np.log(p, out=np.zeros_like(p), where=p > 0)
    return np.maximum((p * (log_p - log_q)).sum(axis=-1), 0.0)
