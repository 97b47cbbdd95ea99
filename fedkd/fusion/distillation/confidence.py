"""Confidence and ambiguity of predictions."""

from collections.abc import Callable

import numpy as np

from fedkd.fusion.math.probabilities import finite_logits


def log_confidence(logits: np.ndarray, classes: np.ndarray | None = None) -> np.ndarray:
    """Return the log-probability of `classes` `[...]`, or the likeliest, from logits `[..., C]`, float32.

    ``log p`` is ``−log(1 + Σ_other exp(z_c − z_max))``, exact down to 1e-38, so predictions that round to 1
    remain distinct.
    """
    z = finite_logits(logits)
    best = z.argmax(axis=-1)[..., None]
    z -= np.take_along_axis(z, best, axis=-1)
    chosen: np.ndarray | float = 0.0
    if classes is not None:
        index = np.broadcast_to(classes, z.shape[:-1])[..., None]
        chosen = np.take_along_axis(z, index, axis=-1)[..., 0]
    np.exp(z, out=z)
    np.put_along_axis(z, best, 0.0, axis=-1)
    return chosen - np.log1p(z.sum(axis=-1))


def energy(logits: np.ndarray) -> np.ndarray:
    """Return ``log Σ_c exp z_c`` of `[..., C]`, the negative free energy: high for familiar samples.

    W. Liu et al., "Energy-based Out-of-distribution Detection", 2020.
    """
    z = finite_logits(logits)
    top = z.max(axis=-1)
    return top + np.log(np.exp(z - top[..., None]).sum(axis=-1))


FAMILIARITY: dict[str, Callable[[np.ndarray], np.ndarray]] = {"energy": energy, "confidence": log_confidence}
"""Scores `[...]` of logits `[..., C]`, high for samples like those a model was trained on, by name."""


def normalised_certainty(probabilities: np.ndarray) -> np.ndarray:
    """Return ``1 − H(q) / log C`` of `[..., C]`, float64: 0 for uniform rows, 1 for one class alone."""
    classes = probabilities.shape[-1]
    if classes == 1:
        return np.ones(probabilities.shape[:-1])
    q = probabilities.astype(np.float64)
    logs = np.log(q, out=np.zeros_like(q), where=q > 0)
    return np.clip(1.0 + (q * logs).sum(axis=-1) / np.log(classes), 0.0, 1.0)


def ambiguity(probabilities: np.ndarray) -> np.ndarray:
    """Return the L1 distance of rows `[..., C]` to their one-hot, ``2 (1 − max_c q_c)``, in [0, 2)."""
    return 2.0 * (1.0 - probabilities.max(axis=-1))
