"""Complementary knowledge: what one model has right and another one wrong, whichever of them is better.

K. Roth, L. Thede, A. S. Koepke, O. Vinyals, O. Hénaff and Z. Akata, "Fantastic Gains and Where to Find Them:
On the Existence and Prospect of General Knowledge Transfer between Any Pretrained Model", ICLR 2024, arXiv
2310.17653.
"""

from __future__ import annotations

import numpy as np


def complement(right: np.ndarray) -> np.ndarray:
    """Return ``ρ⁺[n, m]``, the share of samples that m has right and n wrong, receiver first, `[N, N]`.

    ``ρ⁺[n, m] − ρ⁺[m, n]`` is the difference of their accuracies, a_m − a_n; but both may be well above 0: a
    worse model knows something as well. NaN without samples.

    Args:
        right: Which samples each client has right, `[N, M]` bool.
    """
    clients, samples = right.shape
    if samples == 0:
        return np.full((clients, clients), np.nan)
    has = right.astype(np.float64)
    return (1.0 - has) @ has.T / samples


def complement_by_class(right: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return ρ⁺ among the samples of each class, `[N, N, C]`; NaN for a class without any.

    Args:
        right: As for `complement`.
        labels: True labels, `[M]`.
        classes: C.
    """
    return np.stack([complement(right[:, labels == label]) for label in range(classes)], axis=-1)


def transfer_rate(right: np.ndarray, taught: np.ndarray) -> np.ndarray:
    """Return which share of what m could teach n it has taught it, receiver first, `[N, N]`.

    Of the samples that m has right and n wrong, those that n has right once it has learned from m alone; NaN
    where there are none, as for m = n.

    Args:
        right: Which samples each client has right before, `[N, M]` bool.
        taught: Which samples n has right after it has learned from m, `[N, N, M]` bool.
    """
    rate = np.full(taught.shape[:2], np.nan)
    for n, own in enumerate(right):
        teachable = right & ~own
        number = teachable.sum(axis=1)
        learned = (taught[n] & teachable).sum(axis=1)
        np.divide(learned, number, out=rate[n], where=number > 0)
    return rate


def surer(answer: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Return the share of samples on which m says something else than n and is surer of it, `[N, N]`.

    Stands in for `complement` where there are no labels. 0 without samples.

    Args:
        answer: The class that each client says, `[N, M]`.
        confidence: How sure it is, in any measure, `[N, M]`.
    """
    clients, samples = answer.shape
    share = np.zeros((clients, clients))
    for n in range(clients if samples else 0):
        share[n] = ((answer != answer[n]) & (confidence > confidence[n])).mean(axis=1)
    return share
