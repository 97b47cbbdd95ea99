"""Filters of predictions: by relevance, confidence and agreement.

After the selectors of S. Feng et al., "Knowledge Card" (first called CooK), ICLR 2024, arXiv 2305.09955.

A filter weighs every prediction in [0, 1] and drops those below its threshold. Weights come from all sent
predictions, so absolute thresholds may be in any order; a quantile is over the predictions that earlier
filters kept.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import numpy as np

from fedkd.fusion.distillation.confidence import normalised_certainty

DEFAULT_THRESHOLDS = {"relevance": 0.5, "confidence": 0.5, "agreement": 0.3}
"""Default thresholds."""


class FilterSettings(Protocol):
    """A filter of a scenario."""

    @property
    def by(self) -> str:
        """Measure: one of `DEFAULT_THRESHOLDS`."""

    @property
    def threshold(self) -> float | None:
        """Least weight to keep; None: that of `DEFAULT_THRESHOLDS`."""

    @property
    def votes(self) -> Literal["equal", "class_shares"]:
        """Weights of votes for `agreement`."""

    @property
    def quantile(self) -> float | None:
        """Share to drop, for any weights; None: the threshold decides."""


def relevance(q: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Return the probability of a receiver's missing classes, ``Σ_c need[c] q_m[i, c]``, `[N, M]`.

    ``need[c] = 1 − min(1, C p[c])`` of its class distribution p `[C]`: 0 for an even share, 1 for none.
    """
    need = 1.0 - np.minimum(1.0, len(p) * p)
    return q.astype(np.float64) @ need


def agreement(q: np.ndarray, p: np.ndarray, sent: np.ndarray) -> np.ndarray:
    """Return the share of the others' votes that agree with each prediction, `[N, M]`.

    ``Σ_{k≠m} p_k[c] s_k[i] [argmax q_k[i] = c] / Σ_{k≠m} p_k[c] s_k[i]`` with ``c = argmax q_m[i]``; 1
    without other votes. q are probabilities `[N, M, C]`, p the weight of a client's vote for each class `[N,
    C]`, s (`sent`) the predictions that vote, `[N, M]` bool.
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


def mean_class_shares(q: np.ndarray, sent: np.ndarray) -> np.ndarray:
    """Return each client's mean over `sent` `[N, M]` of q `[N, M, C]`, `[N, C]`; uniform without any."""
    number = sent.sum(axis=1)[:, None]
    total = np.einsum("nm,nmc->nc", sent.astype(np.float64), q.astype(np.float64))
    return np.divide(total, number, out=np.full(total.shape, 1.0 / q.shape[-1]), where=number > 0)


def has_personal_filter(filters: Sequence[FilterSettings]) -> bool:
    """Return whether receivers may keep different predictions."""
    return any(wanted.by == "relevance" for wanted in filters)


def filter_masks(filters: Sequence[FilterSettings], q: np.ndarray, sent: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the `sent` predictions that each receiver keeps, `[N, M]` bool; once if all keep the same.

    `q` are probabilities, `[N, M, C]`; filters apply in order.
    """
    p = mean_class_shares(q, sent)
    same: list[np.ndarray | None] = []
    for wanted in filters:
        if wanted.by == "relevance":
            same.append(None)
        elif wanted.by == "confidence":
            same.append(normalised_certainty(q))
        else:
            same.append(agreement(q, np.ones_like(p) if wanted.votes == "equal" else p, sent))
    for receiver in p if has_personal_filter(filters) else p[:1]:
        keep = sent.copy()
        for wanted, known in zip(filters, same, strict=True):
            weights = relevance(q, receiver) if known is None else known
            keep &= weights >= filter_threshold(wanted, weights[keep])
        yield keep


def filter_threshold(wanted: FilterSettings, weights: np.ndarray) -> float:
    """Return the least weight that a filter keeps."""
    if wanted.quantile is not None:
        return float(np.quantile(weights, wanted.quantile)) if weights.size else 0.0
    return DEFAULT_THRESHOLDS[wanted.by] if wanted.threshold is None else wanted.threshold


def filtered_mean(values: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each sample's mean `[M, C]` float64 of kept values `[N, M, C]`, and a mask of samples."""
    number = keep.sum(axis=0)
    total = np.einsum("nm,nmc->mc", keep.astype(np.float64), values)
    return total / np.maximum(number, 1)[:, None], number > 0


def filtered_mixture(weights: np.ndarray, q: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``Σ_m W_nm k_m[i] q_m[i] / Σ_m W_nm k_m[i]``, `[R, M, C]` float32, and a mask of samples.

    W `[R, N]` are the weights of R receivers, q `[N, M, C]` probabilities, k `[N, M]` bool is `keep`.
    """
    clients, samples, classes = q.shape
    heard = weights @ keep.astype(np.float64)  # [R, M]
    kept_q = np.where(keep[..., None], q, 0.0).reshape(clients, samples * classes)
    total = (weights @ kept_q).reshape(len(weights), samples, classes)
    total /= np.where(heard > 0, heard, 1.0)[..., None]
    sums = total.sum(axis=-1, keepdims=True)
    return (total / np.where(sums > 0, sums, 1.0)).astype(np.float32), heard > 0
