"""Soft labels of a few bits per class, and their differences, for a small downlink."""

from typing import NamedTuple

import numpy as np

from fedkd.fusion.views import Arrays

CHANGED = "changed"
LABELS = "labels"
SHAPE = "shape"


def levels(bits: int) -> int:
    """Return the number of steps ``2^b − 1`` of a label's probabilities."""
    return 2**bits - 1


def quantise(probabilities: np.ndarray, bits: int) -> np.ndarray:
    """Return each class's steps, `[M, C]` uint8, rows that sum to all of them; b is 1 to 8.

    The row has the least L1 distance to the probabilities: every class gets its whole steps, and the largest
    remainders get the rest, of equal ones the first.
    """
    steps = levels(bits)
    wanted = probabilities.astype(np.float64)
    wanted *= steps / wanted.sum(axis=-1, keepdims=True)
    whole = np.floor(wanted + 1e-9)  # rounding must not lose a step
    left = steps - whole.sum(axis=-1, keepdims=True)
    order = np.argsort(-(wanted - whole), axis=-1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[-1])[None], axis=-1)
    return (whole + (rank < left)).astype(np.uint8)


def soft_labels(steps: np.ndarray, bits: int) -> np.ndarray:
    """Return the soft labels `[M, C]` float32 of steps."""
    return (steps / levels(bits)).astype(np.float32)


class Version(NamedTuple):
    """Quantised labels `[M, C]` uint8, and the round of each one's last change, `[M]` int32."""

    steps: np.ndarray
    since: np.ndarray


def renew(old: Version | None, steps: np.ndarray, round: int) -> Version:
    """Return new labels; equal ones keep their age."""
    if old is None:
        return Version(steps, np.full(len(steps), round, dtype=np.int32))
    return Version(steps, np.where((steps != old.steps).any(axis=-1), np.int32(round), old.since))


def difference(version: Version, told: int, bits: int) -> dict[str, np.ndarray]:
    """Return the labels changed since the round `told`; 0: all labels.

    They are `changed`, a bit for each label; `labels`, `bits` for each class of those; and `shape`.
    """
    changed = version.since > told
    return {
        CHANGED: np.packbits(changed),
        LABELS: np.packbits(np.unpackbits(version.steps[changed].reshape(-1, 1), axis=1)[:, 8 - bits :]),
        SHAPE: np.array(version.steps.shape, dtype=np.uint32),
    }


def put_together(old: np.ndarray | None, sent: Arrays, bits: int) -> np.ndarray:
    """Return the labels `[M, C]` after a `difference` to old ones; None: there were none."""
    samples, classes = map(int, sent[SHAPE])
    steps = np.zeros((samples, classes), dtype=np.uint8) if old is None else old.copy()
    changed = np.unpackbits(sent[CHANGED], count=samples).astype(bool)
    each = np.unpackbits(sent[LABELS], count=int(changed.sum()) * classes * bits).reshape(-1, bits)
    padded = np.zeros((len(each), 8), dtype=np.uint8)
    padded[:, 8 - bits :] = each
    steps[changed] = np.packbits(padded, axis=1).reshape(-1, classes)
    return steps
