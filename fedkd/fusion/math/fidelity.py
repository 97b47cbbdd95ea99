"""Fidelity of a client to its targets, and the effect of fusion on predictions.

Accuracy can rise while agreement with the teacher falls: S. Stanton et al., "Does Knowledge Distillation
Really Work?", NeurIPS 2021, arXiv 2106.05945, and arXiv 2505.15442.
"""

from typing import NamedTuple

import numpy as np

from fedkd.fusion.math.probabilities import finite_logits, log_softmax


class Flips(NamedTuple):
    """Shares of all samples that turned right (`positive`) and wrong."""

    positive: float
    negative: float


def agreement(logits: np.ndarray, guidance: np.ndarray) -> float:
    """Return the share of logits `[M, C]` whose top class is the guidance's `[M, C]`; nan without samples."""
    if len(logits) == 0:
        return float("nan")
    return float((logits.argmax(axis=-1) == guidance.argmax(axis=-1)).mean())


def mean_kl_divergence(logits: np.ndarray, guidance: np.ndarray) -> float:
    """Return ``mean_i KL(guidance_i ‖ softmax(z_i))`` of `[M, C]` in nats, ≥ 0; nan without samples.

    It stays finite, because it uses log-probabilities of the logits. Zeros of the guidance add nothing.
    """
    if len(logits) == 0:
        return float("nan")
    log_q = log_softmax(finite_logits(logits))
    t = guidance.astype(np.float64)
    log_t = np.log(t, out=np.zeros_like(t), where=t > 0)
    return float(max((t * (log_t - log_q)).sum(axis=-1).mean(), 0.0))


def prediction_flips(before: np.ndarray, after: np.ndarray) -> Flips:
    """Return the shares of samples `[S]` bool that became correct and wrong; nan without samples.

    Their difference is the gain in accuracy; a large sum with a small gain means exchanged knowledge.
    """
    if len(before) == 0:
        return Flips(float("nan"), float("nan"))
    return Flips(float((after & ~before).mean()), float((before & ~after).mean()))
