"""Scores of membership from a model's answers: a higher one says "member"."""

import numpy as np


def log_odds(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return φ = log p_y − log Σ_{j≠y} p_j `[S]` float64 of logits `[S, C]` and labels `[S]`.

    Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022. It is computed from logits
    alone, so that it stays finite for p_y near 1.
    """
    z, rows = logits.astype(np.float64), np.arange(len(labels))
    true = z[rows, labels]
    others = z.copy()
    others[rows, labels] = -np.inf
    highest = others.max(axis=1, keepdims=True)
    return true - highest[:, 0] - np.log(np.exp(others - highest).sum(axis=1))


def correctness(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return 1 for right answers, else 0: `[S]` float64 (the gap attack of Yeom et al., CSF 2018)."""
    return (logits.argmax(axis=1) == labels).astype(np.float64)


def translations(x: np.ndarray, distance: int = 1) -> np.ndarray:
    """Return images `[S, C, H, W]` and their shifts by |dx| + |dy| = d: `[4d + 1, S, C, H, W]`.

    Choquette-Choo et al., "Label-Only Membership Inference Attacks", ICML 2021. Pixels at the border repeat.
    """
    d = distance
    padded = np.pad(x, ((0, 0), (0, 0), (d, d), (d, d)), mode="edge")
    shifts = [(dx, dy) for dx in range(-d, d + 1) for dy in range(-d, d + 1) if abs(dx) + abs(dy) == d]
    height, width = x.shape[2:]
    return np.stack(
        [padded[:, :, d + dy : d + dy + height, d + dx : d + dx + width] for dx, dy in [(0, 0), *shifts]]
    )
