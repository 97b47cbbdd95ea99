"""Soft labels of a few bits a class, and of what has changed in them: what a small downlink is made of."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedkd.fusion.views import Arrays

CHANGED = "changed"
LABELS = "labels"
SHAPE = "shape"


def levels(bits: int) -> int:
    """Return the number of steps ``2^b − 1`` that a label's probabilities are shared out in."""
    return 2**bits - 1


def quantise(probabilities: np.ndarray, bits: int) -> np.ndarray:
    """Return how many of the steps each class gets, `[M, C]` uint8: rows that sum to all of them.

    Of all such rows it is the one with the least L1 distance to the probabilities: every class gets its whole
    steps, and what is left goes to the largest remainders, of equal ones to the first. One bit is the class
    with the largest probability.

    Args:
        probabilities: `[M, C]`, rows that sum to 1.
        bits: b, 1 to 8.
    """
    steps = levels(bits)
    wanted = probabilities.astype(np.float64)
    wanted *= steps / wanted.sum(axis=-1, keepdims=True)
    whole = np.floor(wanted + 1e-9)  # what is a step but for rounding is one
    left = steps - whole.sum(axis=-1, keepdims=True)
    order = np.argsort(-(wanted - whole), axis=-1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[-1])[None], axis=-1)
    return (whole + (rank < left)).astype(np.uint8)


def soft_labels(steps: np.ndarray, bits: int) -> np.ndarray:
    """Return the soft labels `[M, C]` float32 that steps stand for."""
    return (steps / levels(bits)).astype(np.float32)


class Version(NamedTuple):
    """Quantised labels and when each was last another one.

    Attributes:
        steps: `[M, C]` uint8.
        since: The round from which each label is as it is, `[M]` int32.
    """

    steps: np.ndarray
    since: np.ndarray


def renew(old: Version | None, steps: np.ndarray, round: int) -> Version:
    """Return new labels, which are as old as they are the same."""
    if old is None:
        return Version(steps, np.full(len(steps), round, dtype=np.int32))
    return Version(steps, np.where((steps != old.steps).any(axis=-1), np.int32(round), old.since))


def difference(version: Version, told: int, bits: int) -> dict[str, np.ndarray]:
    """Return what somebody lacks who has the labels of a round: which have changed since, and those.

    Args:
        version: The labels now.
        told: The round whose labels are there; 0: none are.
        bits: Of a class.

    Returns:
        `changed`, a bit for each label; `labels`, `bits` for each class of those that have; `shape`.
    """
    changed = version.since > told
    return {
        CHANGED: np.packbits(changed),
        LABELS: _pack(version.steps[changed], bits),
        SHAPE: np.array(version.steps.shape, dtype=np.uint32),
    }


def put_together(old: np.ndarray | None, sent: Arrays, bits: int) -> np.ndarray:
    """Return the labels `[M, C]` that a `difference` makes of old ones; None: there were none."""
    samples, classes = map(int, sent[SHAPE])
    steps = np.zeros((samples, classes), dtype=np.uint8) if old is None else old.copy()
    changed = np.unpackbits(sent[CHANGED], count=samples).astype(bool)
    steps[changed] = _unpack(sent[LABELS], bits, (int(changed.sum()), classes))
    return steps


def _pack(steps: np.ndarray, bits: int) -> np.ndarray:
    """Return numbers below ``2^bits`` as bits, one after another, the last byte filled with zeros."""
    each = np.unpackbits(steps.reshape(-1, 1), axis=1)[:, 8 - bits :]
    return np.packbits(each)


def _unpack(packed: np.ndarray, bits: int, shape: tuple[int, int]) -> np.ndarray:
    each = np.unpackbits(packed, count=shape[0] * shape[1] * bits).reshape(-1, bits)
    padded = np.zeros((len(each), 8), dtype=np.uint8)
    padded[:, 8 - bits :] = each
    return np.packbits(padded, axis=1).reshape(shape)
