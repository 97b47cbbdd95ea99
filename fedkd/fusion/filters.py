"""Which predictions are heard at all: those that are wanted, that are sure, that others bear out.

S. Feng, W. Shi, Y. Bai, V. Balachandran, T. He and Y. Tsvetkov, "Knowledge Card: Filling LLMs' Knowledge Gaps
with Plug-in Specialized Language Models" (first called CooK), ICLR 2024, arXiv 2305.09955, whose selectors of
relevance, brevity and factuality these are after.

A filter weighs every prediction in [0, 1]; what weighs less than its threshold is dropped. Weights are those
of all that was sent, whatever other filters drop, so that absolute thresholds may come in any order; a
quantile is one of what filters before it have left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np

from fedkd.fusion.confidence import certainty

THRESHOLDS = {"relevance": 0.5, "confidence": 0.5, "agreement": 0.3}
"""What a filter asks for where a scenario does not say."""


class Wanted(Protocol):
    """A filter as a scenario has it."""

    @property
    def by(self) -> str:
        """What predictions are weighed by: one of `THRESHOLDS`."""

    @property
    def threshold(self) -> float | None:
        """The least weight that is kept; None: that of `THRESHOLDS`."""

    @property
    def votes(self) -> Literal["equal", "class_shares"]:
        """How votes of `agreement` are weighed."""

    @property
    def quantile(self) -> float | None:
        """The share that is dropped, whatever its weights; None: the threshold decides."""


def relevance(q: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Return how likely each sample is of classes that a receiver lacks, as each sender sees it, `[N, M]`.

    ``Σ_c need[c] q_m[i, c]`` with ``need[c] = 1 − min(1, C p[c])``: 0 for a class that the receiver has its
    share of, 1 for one that it knows nothing of.

    Args:
        q: Probabilities, `[N, M, C]`.
        p: What the receiver has of each class, sums to 1, `[C]`.
    """
    need = 1.0 - np.minimum(1.0, len(p) * p)
    return q.astype(np.float64) @ need


def agreement(q: np.ndarray, p: np.ndarray, sent: np.ndarray) -> np.ndarray:
    """Return the share of the others' votes that bear each prediction out, `[N, M]`.

    ``Σ_{k≠m} p_k[c] s_k[i] [argmax q_k[i] = c] / Σ_{k≠m} p_k[c] s_k[i]`` with ``c = argmax q_m[i]``. It is 1
    where no other client has a vote. Votes by class shares leave a class to the clients that have it; the
    shares are the clients' own claim. Equal votes are ``p = 1``.

    Args:
        q: Probabilities, `[N, M, C]`.
        p: What the vote of each counts for each class, `[N, C]`.
        sent: s, which predictions there are, `[N, M]` bool; one that was not sent has no vote.
    """
    clients, samples, classes = q.shape
    votes = q.argmax(axis=-1)  # [N, M]
    voters, voting = np.zeros((2, samples, classes))
    rows = np.arange(samples)
    for own, voted, there in zip(p, votes, sent, strict=True):
        voters[rows[there], voted[there]] += own[voted[there]]
        voting[there] += own
    own = np.take_along_axis(p, votes, axis=1) * sent
    agreeing = voters[rows[None, :], votes] - own
    whole = voting[rows[None, :], votes]
    knowing = whole - own
    nobody = knowing <= 1e-12 * np.maximum(whole, 1e-300)
    share = np.divide(agreeing, knowing, out=np.ones((clients, samples)), where=~nobody)
    return np.clip(share, 0.0, 1.0)


def class_shares(q: np.ndarray, sent: np.ndarray) -> np.ndarray:
    """Return what each client seems to have of each class, the mean of its predictions, `[N, C]` float64.

    Args:
        q: Probabilities, `[N, M, C]`.
        sent: Which of them count, `[N, M]` bool; a client without any seems to have all classes alike.
    """
    number = sent.sum(axis=1)[:, None]
    total = np.einsum("nm,nmc->nc", sent.astype(np.float64), q.astype(np.float64))
    return np.divide(total, number, out=np.full(total.shape, 1.0 / q.shape[-1]), where=number > 0)


def is_personal(filters: Sequence[Wanted]) -> bool:
    """Return whether receivers may keep different predictions of the same."""
    return any(wanted.by == "relevance" for wanted in filters)


def kept(filters: Sequence[Wanted], q: np.ndarray, sent: np.ndarray) -> Iterator[np.ndarray]:
    """Yield which predictions each receiver keeps in turn, `[N, M]` bool; once if all keep the same.

    Args:
        filters: In order.
        q: Probabilities, `[N, M, C]`.
        sent: Which predictions there are, `[N, M]` bool.
    """
    p = class_shares(q, sent)
    same = [None if wanted.by == "relevance" else _weigh(wanted, q, p, sent) for wanted in filters]
    for receiver in p if is_personal(filters) else p[:1]:
        keep = sent.copy()
        for wanted, known in zip(filters, same, strict=True):
            weights = relevance(q, receiver) if known is None else known
            keep &= weights >= least(wanted, weights[keep])
        yield keep


def least(wanted: Wanted, weights: np.ndarray) -> float:
    """Return the least weight that a filter keeps of some predictions, `[...]`."""
    if wanted.quantile is not None:
        return float(np.quantile(weights, wanted.quantile)) if weights.size else 0.0
    return THRESHOLDS[wanted.by] if wanted.threshold is None else wanted.threshold


def _weigh(wanted: Wanted, q: np.ndarray, p: np.ndarray, sent: np.ndarray) -> np.ndarray:
    if wanted.by == "confidence":
        return certainty(q)
    return agreement(q, np.ones_like(p) if wanted.votes == "equal" else p, sent)


def mean_of_kept(values: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over those that are kept of each sample, `[M, C]` float64, and where it is one.

    Args:
        values: `[N, M, C]`.
        keep: `[N, M]` bool.
    """
    number = keep.sum(axis=0)
    total = np.einsum("nm,nmc->mc", keep.astype(np.float64), values)
    return total / np.maximum(number, 1)[:, None], number > 0


def mix_of_kept(weights: np.ndarray, q: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``Σ_m W_nm k_m[i] q_m[i] / Σ_m W_nm k_m[i]``, `[R, M, C]` float32, and where anybody is heard.

    Args:
        weights: W of R receivers, `[R, N]`.
        q: Probabilities, `[N, M, C]`.
        keep: k, `[N, M]` bool.
    """
    clients, samples, classes = q.shape
    heard = weights @ keep.astype(np.float64)  # [R, M]
    kept_q = np.where(keep[..., None], q, 0.0).reshape(clients, samples * classes)
    total = (weights @ kept_q).reshape(len(weights), samples, classes)
    total /= np.where(heard > 0, heard, 1.0)[..., None]
    sums = total.sum(axis=-1, keepdims=True)
    return (total / np.where(sums > 0, sums, 1.0)).astype(np.float32), heard > 0
