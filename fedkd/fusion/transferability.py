"""Whom a client would learn from: guesses made before anything is exchanged, and how good they turn out.

After PANDA (Q. Zhong et al., "PanDa: Prompt Transfer Meets Knowledge Distillation for Efficient Model
Adaptation", arXiv 2208.10160), which foretells by a similarity which source will help a target.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedkd.fusion import distribution as distributions
from fedkd.fusion.complement import complement, surer
from fedkd.fusion.probabilities import softmax
from fedkd.fusion.shift import shift_cosine, shifts
from fedkd.fusion.similarity import kl

TIED = 1e-12
"""Gains are differences of accuracies: those that are nearer to each other than this are equal."""


def nearness(q: np.ndarray) -> np.ndarray:
    """Return ``−KL(p_n ‖ p_m)`` of mean predictions p, as KnFu has it, `[N, N]`.

    Args:
        q: Probabilities on the transfer set, `[N, M, C]`.
    """
    p = distributions.estimate("soft", q)
    return -kl(distributions.smooth(p, distributions.EPSILON["soft"]))


def agreement(q: np.ndarray) -> np.ndarray:
    """Return the share of samples on which both say the same class, `[N, N]`.

    Args:
        q: Probabilities on the transfer set, `[N, M, C]`, M ≥ 1.
    """
    answer = q.argmax(axis=-1)
    return np.stack([(answer == own).mean(axis=1) for own in answer])


UNLABELLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "distance": nearness,
    "agreement": agreement,
    "surer": lambda q: surer(q.argmax(axis=-1), q.max(axis=-1)),
}
"""Guesses from probabilities `[N, M, C]` alone, by name; more is more."""
PREDICTORS = (*UNLABELLED, "shift", "complement")
"""All guesses, in the order in which they are told."""


def predicted(
    logits: np.ndarray, start: np.ndarray, labels: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return how much each receiver (row) would gain by each sender, as every predictor has it, `[N, N]`.

    They are in no unit: what counts is the order that each gives to the senders of a receiver.

    Args:
        logits: On the transfer set, `[N, M, C]`, M ≥ 1.
        start: Mean prediction before any training, `[N, C]`.
        labels: True labels of the transfer set, `[M]`; None: not known, and there is no `complement`.
    """
    q = softmax(logits)
    tables = {name: guess(q) for name, guess in UNLABELLED.items()}
    tables["shift"] = shift_cosine(shifts(logits, start))
    if labels is not None:
        tables["complement"] = complement(q.argmax(axis=-1) == labels)
    return tables


def rank_correlation(guess: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of guess and gain over the senders of each receiver, `[N]`.

    A client itself is no sender. NaN where there are not two senders that differ in both.

    Args:
        guess: Receiver first, `[N, N]`.
        gain: The same.
    """
    found = np.full(len(guess), np.nan)
    for n in range(len(guess)):
        known = _others(guess, gain, n)
        a, b = (_ranks(values[n, known]) for values in (guess, gain))
        a, b = a - a.mean() if a.size else a, b - b.mean() if b.size else b
        scale = np.sqrt((a**2).sum() * (b**2).sum())
        if scale > 0:
            found[n] = np.clip((a * b).sum() / scale, -1.0, 1.0)
    return found


def hits(guess: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return whether the sender that was guessed to be a receiver's best was one, `[N]`.

    A fraction where several were guessed alike; NaN without senders.

    Args:
        guess: Receiver first, `[N, N]`.
        gain: The same.
    """
    found = np.full(len(guess), np.nan)
    for n in range(len(guess)):
        known = _others(guess, gain, n)
        if known.any():
            first = guess[n, known] >= guess[n, known].max() - TIED
            found[n] = _best(gain[n, known])[first].mean()
    return found


def chance(gain: np.ndarray) -> np.ndarray:
    """Return how often whoever guesses a receiver's best sender blindly is right, `[N]`; NaN without any."""
    return hits(np.zeros_like(gain), gain)


def off_diagonal_mean(table: np.ndarray) -> np.ndarray:
    """Return each receiver's mean over the senders whose value is known, `[N]`; NaN without any."""
    known = np.isfinite(table) & ~np.eye(len(table), dtype=bool)
    number = known.sum(axis=1)
    total = np.where(known, table, 0.0).sum(axis=1)
    return np.divide(total, number, out=np.full(len(table), np.nan), where=number > 0)


def _others(guess: np.ndarray, gain: np.ndarray, receiver: int) -> np.ndarray:
    """Return the senders of a receiver of whom both are known, `[N]` bool."""
    known = np.isfinite(guess[receiver]) & np.isfinite(gain[receiver])
    known[receiver] = False
    return known


def _best(gain: np.ndarray) -> np.ndarray:
    return gain >= gain.max() - TIED


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1, those of equal values their mean."""
    _, place, count = np.unique(np.round(values, 12), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
