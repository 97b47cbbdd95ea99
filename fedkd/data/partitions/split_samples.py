"""The split of all samples: transfer set, clients' training and test parts, common test set."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.partitions.from_file import read_partition_file
from fedkd.data.partitions.plugin import plugged_partition
from fedkd.data.partitions.replacement import draw_with_replacement
from fedkd.data.partitions.schemes import deal_by_owner, partition
from fedkd.data.partitions.stratified import held_out_split, local_split, stratified_choice
from fedkd.data.registry import PARTITIONS
from fedkd.data.targets import BINS, target_bins
from fedkd.data.transfer import draw_holdout
from fedkd.errors import did_you_mean, refuse_if
from fedkd.randomness import numpy_generator
from fedkd.scenario import Partition, Scenario

Bounds = tuple[int, int]  # start and stop of a client's samples


@dataclass(frozen=True)
class SampleSplit:
    """Indices of samples; with replacement, clients may share some for training or tests."""

    held_out: np.ndarray  # [M] train indices of the transfer set; empty unless it is held out
    private: np.ndarray  # [S] train indices of the private samples, client after client, train before test
    train_bounds: tuple[Bounds, ...]  # start and stop of every client's training samples in `private`
    test_bounds: tuple[Bounds, ...]
    common: np.ndarray
    """[K] indices of the common test set in the test split, or in the train split if `validates`."""
    validates: bool = False  # True if all tests use training samples that clients hold out

    @property
    def shares(self) -> tuple[Bounds, ...]:
        """Start and stop of all samples of every client."""
        ends = zip(self.train_bounds, self.test_bounds, strict=True)
        return tuple((start, stop) for (start, _), (_, stop) in ends)


def split_samples(
    dataset: Dataset,
    scenario: Scenario,
    search: tuple[Path, ...],
    *,
    task: int | None = None,
    written: Sequence[np.ndarray] | None = None,
) -> SampleSplit:
    """Split train and test samples among clients by the scenario's `data`.

    `task` is the task of all samples, if any. `written` has every client's train indices from a file; None:
    the scheme decides.
    """
    data, seed, train_y, test_y = scenario.data, scenario.seed, dataset.train_y, dataset.test_y
    if written is None and data.partition.scheme == "file":
        written = read_partition_file(data.partition, data.clients, len(train_y), search)
    held_out = hold_out(train_y, scenario, written, task, dataset.owners)
    free = np.setdiff1d(np.arange(len(train_y)), held_out)
    splits: list[tuple[np.ndarray, np.ndarray]] = []
    if data.partition.replacement:
        drawn = draw_with_replacement(
            _classes(train_y[free], data.partition),
            data.clients,
            data.partition,
            data.test_fraction,
            seed,
            task=task,
        )
        splits = [(free[train], free[test]) for train, test in drawn]
    else:
        shards = written or [free[shard] for shard in _shards(dataset, free, scenario, search, task)]
        for client, shard in enumerate(shards):
            train, test = local_split(train_y[shard], data.test_fraction, seed=seed, client=client, task=task)
            splits.append((shard[train], shard[test]))
    if data.validation is not None:
        for client, (own, _) in enumerate(splits):
            kept, held = held_out_split(train_y[own], data.validation, seed=seed, client=client, task=task)
            splits[client] = own[kept], own[held]
        common = np.concatenate([held for _, held in splits])
        refuse_if(not len(common), "no client has two training samples, to hold one out", "data.validation")
    else:
        common = np.arange(len(test_y))
        if data.test_size is not None:
            told = f"must be ≤ {len(test_y)}, the number of test samples, got {data.test_size}"
            refuse_if(data.test_size > len(test_y), told, "data.test_size")
            rng = numpy_generator(seed, "common-test-set", task=task)
            common = np.flatnonzero(stratified_choice(test_y, data.test_size, rng))
    parts = [part for split in splits for part in split]
    bounds = list(pairwise([0, *np.cumsum(list(map(len, parts))).tolist()]))
    return SampleSplit(
        held_out,
        np.concatenate(parts),
        tuple(bounds[::2]),
        tuple(bounds[1::2]),
        common,
        validates=data.validation is not None,
    )


def _classes(labels: np.ndarray, scheme: Partition) -> np.ndarray:
    """Return what schemes take for classes [n]: labels, or quantile bins of the first target."""
    return target_bins(labels, scheme.bins or BINS) if labels.dtype.kind == "f" else labels


def hold_out(
    labels: np.ndarray,
    scenario: Scenario,
    written: Sequence[np.ndarray] | None,
    task: int | None = None,
    owners: np.ndarray | None = None,
) -> np.ndarray:
    """Return the train indices of a held-out transfer set; empty if it has another source."""
    transfer, available = scenario.data.transfer, np.arange(len(labels))
    if transfer.source != "holdout":
        return available[:0]
    if written is not None:
        available = np.setdiff1d(available, np.concatenate(written))
    if transfer.owners is not None:
        known = np.array([], dtype=str) if owners is None else owners.astype(str)
        for name in transfer.owners:
            told = (
                f"no training sample has the owner {name!r}; {did_you_mean(name, np.unique(known).tolist())}"
            )
            refuse_if(name not in known, told, "data.transfer.owners")
        available = available[np.isin(known[available], transfer.owners)]
    alpha, seed = transfer.alpha, scenario.seed
    return draw_holdout(labels, available, transfer.size, alpha, seed=seed, task=task)


def _shards(
    dataset: Dataset, free: np.ndarray, scenario: Scenario, search: tuple[Path, ...], task: int | None
) -> list[np.ndarray]:
    """Return every client's positions in the `free` train indices by a drawn scheme."""
    data, seed, labels = scenario.data, scenario.seed, dataset.train_y
    if data.partition.scheme == "natural":
        of_free = None if dataset.owners is None else dataset.owners[free]
        return deal_by_owner(of_free, data.clients, data.partition, seed, task=task)
    if data.partition.scheme in PARTITIONS.builtin:
        own = _classes(labels[free], data.partition)
        return partition(own, data.clients, data.partition, seed, task=task)
    return plugged_partition(labels[free], data.clients, data.partition, seed, search, task=task)
