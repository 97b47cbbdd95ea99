"""Gaussian predictions: their combination, and their distances.

Means and variances are `[N, M, O]` float64, of clients, samples and targets.
"""

from collections.abc import Callable

import numpy as np


def combine_gaussians(
    weights: np.ndarray, mean: np.ndarray, variance: np.ndarray, rule: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and variance `[R, M, O]` for receivers with weights `[R, N]`, whose rows sum to 1.

    ::

        mean       μ̄ = Σ W μ                    σ̄² = Σ W σ²
        mixture    μ̄ = Σ W μ                    σ̄² = Σ W (σ² + (μ − μ̄)²)
        precision  μ̄ = Σ W μ/σ² / Σ W/σ²        1/σ̄² = Σ W/σ²
    """
    found = [_combined(row, mean, variance, rule) for row in weights]
    return np.stack([own for own, _ in found]), np.stack([own for _, own in found])


def _combined(
    weights: np.ndarray, mean: np.ndarray, variance: np.ndarray, rule: str
) -> tuple[np.ndarray, np.ndarray]:
    w = weights[:, None, None]
    if rule == "precision":
        precision = w / variance
        total = precision.sum(axis=0)
        return (precision * mean).sum(axis=0) / total, 1.0 / total
    middle = (w * mean).sum(axis=0)
    spread = 0.0 if rule == "mean" else (mean - middle) ** 2
    return middle, (w * (variance + spread)).sum(axis=0)


def mean_gaussian_kl(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return ``d[n, m] = mean_i Σ_o KL(N_n ‖ N_m)``, receiver first, `[N, N]`.

    ``KL = log(σ_m/σ_n) + (σ_n² + (μ_n − μ_m)²)/(2σ_m²) − ½``; targets are independent.
    """

    def of(n: int) -> np.ndarray:
        squares = variance[n] + (mean[n] - mean) ** 2
        return 0.5 * (np.log(variance / variance[n]) + squares / variance - 1.0)

    return _distances(of, len(mean))


def mean_squared_wasserstein(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return ``d[n, m] = mean_i Σ_o (μ_n − μ_m)² + (σ_n − σ_m)²``, `[N, N]`: the squared W₂ distance."""
    std = np.sqrt(variance)
    return _distances(lambda n: (mean[n] - mean) ** 2 + (std[n] - std) ** 2, len(mean))


def _distances(of: Callable[[int], np.ndarray], clients: int) -> np.ndarray:
    found = np.stack([of(n).sum(axis=-1).mean(axis=-1) for n in range(clients)])
    return np.maximum(found, 0.0)


def in_medians(d: np.ndarray) -> np.ndarray:
    """Return distances `[N, N]` in units of their median over pairs of different clients."""
    between = d[~np.eye(len(d), dtype=bool)]
    unit = float(np.median(between)) if between.size else 0.0
    return d / unit if unit > 0 else d
