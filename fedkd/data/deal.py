"""Which sample goes where: to the transfer set, to a client's two parts, to the common test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedkd.data.partition import partition
from fedkd.data.partition_file import read_partition_file
from fedkd.data.partition_natural import deal_by_owner
from fedkd.data.partition_plugin import plugged_partition
from fedkd.data.partition_replacement import draw_with_replacement
from fedkd.data.registry import PARTITIONS
from fedkd.data.split import held_out_split, local_split, stratified_choice
from fedkd.data.transfer import draw_holdout, draw_skewed_holdout
from fedkd.errors import UserError
from fedkd.randomness import numpy_generator
from fedkd.scenario.schema import Scenario

Bounds = tuple[int, int]
"""Start and stop of a client's samples."""
Split = tuple[np.ndarray, np.ndarray]
"""Indices of what a client trains on, and of what it is tested on."""


@dataclass(frozen=True)
class Deal:
    """Indices of samples; no sample is in two places, unless clients draw with replacement.

    Then several clients may train on a sample, or be tested on it, but no client trains on what another is
    tested on.

    Attributes:
        held_out: [M] train indices of the transfer set; empty unless it is held out.
        private: [S] train indices of the private samples, client after client, train before test.
        train_bounds: Start and stop of every client's training samples in `private`.
        test_bounds: Start and stop of every client's test samples.
        common: [K] indices of the common test set, in order, among the samples of the test split, or of the
            train split where `validates`.
        validates: Whether tests are on training samples that clients hold out: test samples are nobody's.
    """

    held_out: np.ndarray
    private: np.ndarray
    train_bounds: tuple[Bounds, ...]
    test_bounds: tuple[Bounds, ...]
    common: np.ndarray
    validates: bool = False

    @property
    def shares(self) -> tuple[Bounds, ...]:
        """Start and stop of all of every client's samples."""
        ends = zip(self.train_bounds, self.test_bounds, strict=True)
        return tuple((start, stop) for (start, _), (_, stop) in ends)


def deal(
    train_y: np.ndarray,
    test_y: np.ndarray,
    scenario: Scenario,
    search: tuple[Path, ...],
    *,
    task: int | None = None,
    written: Sequence[np.ndarray] | None = None,
    owners: np.ndarray | None = None,
) -> Deal:
    """Deal a train split and a test split as the scenario's `data` says.

    Args:
        train_y: [n] int64 labels of the train split.
        test_y: [m] int64 labels of the test split.
        scenario: Its `data` and `seed` decide.
        search: The scenario's folders.
        task: Index of the task whose samples these are, if they are a task's alone.
        written: Every client's train indices where a file gave them; None: what the scheme says.
        owners: [n] owner of each sample of the train split, if the data name them.

    Raises:
        UserError: More samples asked for than there are, or no partition.
    """
    data = scenario.data
    if written is None and data.partition.scheme == "file":
        written = read_partition_file(data.partition, data.clients, len(train_y), search)
    held_out = _hold_out(train_y, scenario, written, task)
    if data.partition.replacement:
        free = np.setdiff1d(np.arange(len(train_y)), held_out)
        drawn = draw_with_replacement(
            train_y[free], data.clients, data.partition, data.test_fraction, scenario.seed, task=task
        )
        splits = [(free[train], free[test]) for train, test in drawn]
    else:
        shards = written or _shards(train_y, held_out, scenario, search, task, owners)
        splits = _local_splits(train_y, shards, data.test_fraction, scenario.seed, task)
    if data.validation is not None:
        splits = _held_out(train_y, splits, data.validation, scenario.seed, task)
    private, train_bounds, test_bounds = _one_after_another(splits)
    if data.validation is not None:
        common = np.concatenate([held for _, held in splits])
        return Deal(held_out, private, train_bounds, test_bounds, common, validates=True)
    common = _common_test_set(test_y, data.test_size, scenario.seed, task)
    return Deal(held_out, private, train_bounds, test_bounds, common)


def _hold_out(
    labels: np.ndarray, scenario: Scenario, written: Sequence[np.ndarray] | None, task: int | None
) -> np.ndarray:
    """Return the train indices of a held-out transfer set; none where it has another source."""
    transfer, available = scenario.data.transfer, np.arange(len(labels))
    if transfer.source != "holdout":
        return available[:0]
    if written is not None:
        available = np.setdiff1d(available, np.concatenate(written))
    if transfer.alpha is None:
        return draw_holdout(available, transfer.size, seed=scenario.seed, task=task)
    return draw_skewed_holdout(
        labels, available, transfer.size, transfer.alpha, seed=scenario.seed, task=task
    )


def _shards(
    labels: np.ndarray,
    held_out: np.ndarray,
    scenario: Scenario,
    search: tuple[Path, ...],
    task: int | None,
    owners: np.ndarray | None,
) -> list[np.ndarray]:
    """Return every client's train indices by a drawn scheme; held-out samples go to nobody."""
    data, seed = scenario.data, scenario.seed
    free = np.setdiff1d(np.arange(len(labels)), held_out)
    if data.partition.scheme == "natural":
        of_free = None if owners is None else owners[free]
        shards = deal_by_owner(of_free, data.clients, data.partition, seed, task=task)
    elif data.partition.scheme in PARTITIONS.builtin:
        shards = partition(labels[free], data.clients, data.partition, seed, task=task)
    else:
        shards = plugged_partition(labels[free], data.clients, data.partition, seed, search, task=task)
    return [free[shard] for shard in shards]


def _local_splits(
    labels: np.ndarray, shards: Sequence[np.ndarray], test_fraction: float, seed: int, task: int | None
) -> list[Split]:
    """Return the train indices that every client trains on and that it is tested on."""
    found = []
    for client, shard in enumerate(shards):
        train, test = local_split(labels[shard], test_fraction, seed=seed, client=client, task=task)
        found.append((shard[train], shard[test]))
    return found


def _held_out(
    labels: np.ndarray, splits: Sequence[Split], share: float, seed: int, task: int | None
) -> list[Split]:
    """Return every client's training samples and those it holds out of them, without its test samples.

    Raises:
        UserError: No client has a sample to spare.
    """
    found = []
    for client, (train, _) in enumerate(splits):
        kept, held = held_out_split(labels[train], share, seed=seed, client=client, task=task)
        found.append((train[kept], train[held]))
    if not any(len(held) for _, held in found):
        raise UserError("no client has two training samples, to hold one out", key="data.validation")
    return found


def _one_after_another(splits: Sequence[Split]) -> tuple[np.ndarray, tuple[Bounds, ...], tuple[Bounds, ...]]:
    """Return [S] train indices in storage order, and the bounds of every client's two parts."""
    train_bounds: list[Bounds] = []
    test_bounds: list[Bounds] = []
    start = 0
    for train, test in splits:
        middle, stop = start + len(train), start + len(train) + len(test)
        train_bounds.append((start, middle))
        test_bounds.append((middle, stop))
        start = stop
    order = np.concatenate([part for split in splits for part in split])
    return order, tuple(train_bounds), tuple(test_bounds)


def _common_test_set(labels: np.ndarray, size: int | None, seed: int, task: int | None) -> np.ndarray:
    """Return the test indices of the common test set, in order."""
    if size is None:
        return np.arange(len(labels))
    if size > len(labels):
        raise UserError(
            f"must be ≤ {len(labels)}, the test samples there are, got {size}", key="data.test_size"
        )
    rng = numpy_generator(seed, "common-test-set", task=task)
    return np.flatnonzero(stratified_choice(labels, size, rng))
