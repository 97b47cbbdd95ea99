"""Stratified splits: common test set, a data set's test split, a client's local split."""

import numpy as np

from fedkd.errors import refuse_if
from fedkd.randomness import numpy_generator


def apportion(weights: np.ndarray, total: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Split `total` in proportion to `weights` [K] by largest remainder: [K] int64; `rng` breaks ties."""
    weights = np.asarray(weights, dtype=np.float64)
    quota = total * (weights / weights.sum())
    counts = np.floor(quota + 1e-9).astype(np.int64)
    remainder = np.round(quota - counts, 9)
    ties = np.arange(len(weights)) if rng is None else rng.random(len(weights))
    order = np.lexsort((ties, -remainder))
    counts[order[: total - counts.sum()]] += 1
    return counts


def apportion_rows(weights: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return `apportion` of each row of `weights` [N, K] and of `totals` [N]: [N, K] int64."""
    weights = np.ascontiguousarray(weights)
    quota = totals[:, None] * (weights / weights.sum(axis=1, keepdims=True))
    counts = np.floor(quota + 1e-9).astype(np.int64)
    order = np.argsort(-np.round(quota - counts, 9), axis=1, kind="stable")
    more = np.arange(weights.shape[1]) < (totals - counts.sum(axis=1))[:, None]
    np.put_along_axis(counts, order, np.take_along_axis(counts, order, axis=1) + more, axis=1)
    return counts


def stratified_choice(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Choose `size` of samples [n] by class share, as [n] bool; the rest keeps all classes if possible.

    Samples with real targets are drawn uniformly.
    """
    if labels.dtype.kind == "f":
        labels = np.zeros(len(labels), dtype=np.int64)
    counts = np.bincount(labels)
    plural = np.where(counts > 1, counts, 0)
    # Half of a class of two is the most that leaves both sides a sample.
    spare = np.maximum(plural - 1, 0)
    quota = np.minimum(apportion(counts, size, rng), counts)
    if size <= spare.sum():
        quota = np.minimum(quota, spare)
        while (missing := size - quota.sum()) > 0:
            room = spare - quota
            quota += np.minimum(apportion(np.where(room > 0, plural, 0), missing, rng), room)
    chosen = np.zeros(len(labels), dtype=bool)
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    for start, take in zip(starts, quota, strict=True):
        chosen[by_class[start : start + take]] = True
    return chosen


def own_test_split(labels: np.ndarray, test_share: float, seed: int) -> np.ndarray:
    """Return [n] bool, True for test samples: a share of each class, by the data set's seed."""
    size = round(test_share * len(labels))
    told = f"must leave both splits at least one of {len(labels)} samples, got {test_share}"
    refuse_if(not 0 < size < len(labels), told, "data.args.test_share")
    return stratified_choice(labels, size, numpy_generator(seed, "own-test-split"))


def test_size(samples: int, test_fraction: float) -> int:
    """Return the number of test samples; 0 for a share of 0, else both parts get at least one."""
    return min(max(round(test_fraction * samples), 1), samples - 1) if test_fraction > 0.0 else 0


def local_split(
    labels: np.ndarray, test_fraction: float, *, seed: int, client: int, task: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split a client's n ≥ 2 samples into shuffled train and test positions, by class share."""
    rng = numpy_generator(seed, "local-split", client=client, task=task)
    chosen = stratified_choice(labels, test_size(len(labels), test_fraction), rng)
    return rng.permutation(np.flatnonzero(~chosen)), rng.permutation(np.flatnonzero(chosen))


def held_out_split(
    labels: np.ndarray, share: float, *, seed: int, client: int, task: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out training samples of a client by class share: ascending positions of both parts."""
    size = test_size(len(labels), share) if len(labels) > 1 else 0
    chosen = stratified_choice(labels, size, numpy_generator(seed, "held-out", client=client, task=task))
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
