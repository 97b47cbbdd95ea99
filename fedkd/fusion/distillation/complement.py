"""Complementary knowledge: samples that only one of two models has right (Roth et al., 2310.17653)."""

import numpy as np


def complement(right: np.ndarray) -> np.ndarray:
    """Return ``ρ⁺[n, m]``, the share of samples with m right and n wrong, `[N, N]`.

    Receiver first. ``ρ⁺[n, m] − ρ⁺[m, n]`` is the difference of their accuracies. `right` is `[N, M]`; NaN
    without samples.
    """
    clients, samples = right.shape
    if samples == 0:
        return np.full((clients, clients), np.nan)
    has = right.astype(np.float64)
    return (1.0 - has) @ has.T / samples


def complement_by_class(right: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return ρ⁺ on the samples of each class by labels `[M]`, `[N, N, C]`; NaN without samples."""
    return np.stack([complement(right[:, labels == label]) for label in range(classes)], axis=-1)


def complementary_transfer_rate(right: np.ndarray, taught: np.ndarray) -> np.ndarray:
    """Return n's accuracy on m's complementary samples after learning from m, `[N, N]`.

    Receiver first; NaN if m complements n nowhere, as for m = n. `right` `[N, M]` are correct predictions
    before, `taught` `[N, N, M]` those of n after learning from m.
    """
    rate = np.full(taught.shape[:2], np.nan)
    for n, own in enumerate(right):
        teachable = right & ~own
        number = teachable.sum(axis=1)
        learned = (taught[n] & teachable).sum(axis=1)
        np.divide(learned, number, out=rate[n], where=number > 0)
    return rate


def surer(answer: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Return the share of samples where m disagrees with n and is more confident, `[N, N]`.

    It replaces `complement` without labels; 0 without samples. `answer` and `confidence` are `[N, M]`.
    """
    clients, samples = answer.shape
    share = np.zeros((clients, clients))
    for n in range(clients if samples else 0):
        share[n] = ((answer != answer[n]) & (confidence > confidence[n])).mean(axis=1)
    return share
