"""How far a client's answers lean to the classes of its own samples, where each client says so for itself."""

from __future__ import annotations

import numpy as np

KAPPAS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""What `own_prior = "auto"` chooses among, ascending."""


def log_shares(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the logarithm of the classes' shares among labels `[n]`, `[C]` float32.

    Each class counts one sample more than there are, so that none is ruled out.
    """
    counts = np.bincount(labels, minlength=classes) + 1
    return np.log(counts / counts.sum()).astype(np.float32)


def leaning(logits: np.ndarray, kappa: float, log_prior: np.ndarray) -> np.ndarray:
    """Return ``z + κ log π``, `[n, C]`; the logits themselves for κ = 0.

    Args:
        logits: z, `[n, C]`.
        log_prior: log π, `[C]`.
    """
    return logits if kappa == 0.0 else logits + np.float32(kappa) * log_prior


def smallest_kappa(logits: np.ndarray, labels: np.ndarray, log_prior: np.ndarray) -> float:
    """Return the smallest κ of `KAPPAS` whose accuracy is within one standard error of the best.

    The standard error is that of the best accuracy a, ``√(a (1 − a) / n)``. Without samples it is 0.

    Args:
        logits: Of samples that were not trained on, `[n, C]`.
        labels: Theirs, `[n]`.
        log_prior: log π, `[C]`.
    """
    if not len(labels):
        return 0.0
    answers = [leaning(logits, kappa, log_prior).argmax(axis=1) for kappa in KAPPAS]
    right = np.array([np.count_nonzero(answer == labels) for answer in answers]) / len(labels)
    best = float(right.max())
    enough = best - np.sqrt(best * (1.0 - best) / len(labels))
    return next(kappa for kappa, accuracy in zip(KAPPAS, right, strict=True) if accuracy >= enough)
