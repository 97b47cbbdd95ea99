"""Predictors of each client's gain from other clients, and their quality.

After PANDA (Zhong et al., arXiv 2208.10160), which predicts the useful source by a similarity.
"""

from collections.abc import Callable

import numpy as np

from fedkd.fusion.distillation.complement import complement, surer
from fedkd.fusion.distillation.shift import shift_cosine, shifts
from fedkd.fusion.math.probabilities import softmax
from fedkd.fusion.math.similarity import class_kl

TIED = 1e-12
"""Gains this close are equal: they are differences of accuracies."""


def nearness(q: np.ndarray) -> np.ndarray:
    """Return ``−KL(p_n ‖ p_m)`` of mean predictions p, as in KnFu, of probabilities `[N, M, C]`, `[N, N]`."""
    return -class_kl(q)


def agreement(q: np.ndarray) -> np.ndarray:
    """Return the share of samples with equal predicted classes, `[N, N]`, of `[N, M, C]`, M ≥ 1."""
    answer = q.argmax(axis=-1)
    return np.stack([(answer == own).mean(axis=1) for own in answer])


UNLABELLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "distance": nearness,
    "agreement": agreement,
    "surer": lambda q: surer(q.argmax(axis=-1), q.max(axis=-1)),
}
"""Predictors from probabilities `[N, M, C]` alone, by name; more is better."""
TRANSFER_PREDICTORS = (*UNLABELLED, "shift", "complement")
"""All predictors, in the order of reports."""


def predict_gains(
    logits: np.ndarray, start: np.ndarray, labels: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return each predictor's gains of receivers (rows) by senders, `[N, N]`; only their order counts.

    Logits are `[N, M, C]`, M ≥ 1, and `start` the mean predictions before any training, `[N, C]`. Without
    labels `[M]` there is no `complement`.
    """
    q = softmax(logits)
    tables = {name: guess(q) for name, guess in UNLABELLED.items()}
    tables["shift"] = shift_cosine(shifts(logits, start))
    if labels is not None:
        tables["complement"] = complement(q.argmax(axis=-1) == labels)
    return tables


def rank_correlation(guess: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of guess and gain `[N, N]` over each receiver's senders, `[N]`.

    NaN without two senders that differ in both.
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


def best_sender_hits(guess: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return whether each receiver's best sender is guessed correctly, `[N]`; NaN without senders.

    A fraction if several have the same guess.
    """
    found = np.full(len(guess), np.nan)
    for n in range(len(guess)):
        known = _others(guess, gain, n)
        if known.any():
            own, gains = guess[n, known], gain[n, known]
            found[n] = (gains >= gains.max() - TIED)[own >= own.max() - TIED].mean()
    return found


def chance_accuracy(gain: np.ndarray) -> np.ndarray:
    """Return the probability that a blind guess of the best sender is right, `[N]`; NaN without any."""
    return best_sender_hits(np.zeros_like(gain), gain)


def off_diagonal_mean(table: np.ndarray) -> np.ndarray:
    """Return each receiver's mean over senders with a value, `[N]`; NaN without any."""
    known = np.isfinite(table) & ~np.eye(len(table), dtype=bool)
    number = known.sum(axis=1)
    total = np.where(known, table, 0.0).sum(axis=1)
    return np.divide(total, number, out=np.full(len(table), np.nan), where=number > 0)


def _others(guess: np.ndarray, gain: np.ndarray, receiver: int) -> np.ndarray:
    """Return a receiver's senders with both values, `[N]` bool."""
    known = np.isfinite(guess[receiver]) & np.isfinite(gain[receiver])
    known[receiver] = False
    return known


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 1; equal values have their mean."""
    _, place, count = np.unique(np.round(values, 12), return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]
