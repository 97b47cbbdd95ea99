"""How faithfully a client follows its guidance, and what following it changed.

Accuracy can rise while agreement with the teacher falls, so both are worth a look: S. Stanton et al., "Does
Knowledge Distillation Really Work?", NeurIPS 2021, arXiv 2106.05945, and arXiv 2505.15442.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedkd.fusion.probabilities import finite_logits


class Flips(NamedTuple):
    """Shares of all samples whose prediction turned: wrong to right (`positive`), right to wrong."""

    positive: float
    negative: float


def agreement(logits: np.ndarray, guidance: np.ndarray) -> float:
    """Return the share of samples whose likeliest class is the guidance's too; nan without samples.

    Args:
        logits: The client's predictions, `[M, C]`.
        guidance: The targets of the same samples as probabilities or logits, `[M, C]`.
    """
    if len(logits) == 0:
        return float("nan")
    return float((logits.argmax(axis=-1) == guidance.argmax(axis=-1)).mean())


def divergence(logits: np.ndarray, guidance: np.ndarray) -> float:
    """Return ``mean_i KL(guidance_i ‖ softmax(z_i))`` in nats, ≥ 0; nan without samples.

    It stays finite whatever the client predicts, because no probability is formed of its logits.

    Args:
        logits: The client's predictions z, `[M, C]`.
        guidance: Probabilities, `[M, C]`; a zero adds nothing.
    """
    if len(logits) == 0:
        return float("nan")
    z = finite_logits(logits).astype(np.float64)
    z -= z.max(axis=-1, keepdims=True)
    log_q = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    t = guidance.astype(np.float64)
    log_t = np.log(t, out=np.zeros_like(t), where=t > 0)
    return float(max((t * (log_t - log_q)).sum(axis=-1).mean(), 0.0))


def flips(before: np.ndarray, after: np.ndarray) -> Flips:
    """Return which shares of samples guidance put right and spoiled; nan without samples.

    Their difference is the gain in accuracy; a large sum behind a small gain says that knowledge was
    exchanged rather than added.

    Args:
        before: Which samples were classified correctly before the guidance, `[S]` bool.
        after: The same after it.
    """
    if len(before) == 0:
        return Flips(float("nan"), float("nan"))
    return Flips(float((after & ~before).mean()), float((before & ~after).mean()))
