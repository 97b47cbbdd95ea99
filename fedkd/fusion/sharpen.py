"""From clients' probabilities to one distribution per sample: the mean, and two ways to sharpen it."""

from __future__ import annotations

import numpy as np

from fedkd.fusion.probabilities import softmax


def mean_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the uniform mean over clients of ``softmax(z)`` of logits `[N, M, C]`, `[M, C]` float32."""
    mean = softmax(logits).mean(axis=0, dtype=np.float64)
    return mean.astype(np.float32)


def entropy_reduction(mean: np.ndarray, temperature: float) -> np.ndarray:
    """Return ``softmax(mean / T)``, the entropy reduction aggregation (ERA) of DS-FL, `[M, C]`.

    Two classes end up at most a factor exp(1/T) apart.
    """
    return softmax(mean, temperature)


def power(mean: np.ndarray, exponent: float) -> np.ndarray:
    """Return ``mean^b / Σ mean^b``, the enhanced ERA of SCARLET, `[M, C]`; b > 1 lowers the entropy."""
    raised = (mean / mean.max(axis=-1, keepdims=True)) ** exponent  # the largest is 1: no row vanishes
    return raised / raised.sum(axis=-1, keepdims=True)
