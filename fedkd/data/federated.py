"""The data of one federation: every client's shard, the transfer set, the common test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.heterogeneity import Skew, add_noise, draw_skews, replace_labels, skew_images
from fedkd.data.normalise import Statistics, measure
from fedkd.data.partition import partition
from fedkd.data.partition_file import read_partition_file
from fedkd.data.partition_plugin import plugged_partition
from fedkd.data.registry import PARTITIONS, load_dataset
from fedkd.data.request import Progress, SourceRequest, data_root, silent
from fedkd.data.split import local_split, stratified_choice
from fedkd.data.transfer import draw_holdout, foreign_samples, noise
from fedkd.errors import UserError
from fedkd.plugins import import_plugins
from fedkd.randomness import numpy_generator
from fedkd.scenario.schema import Scenario

Bounds = tuple[int, int]
"""Start and stop of a client's samples."""


@dataclass(frozen=True)
class ClientData:
    """What one client sees; views into `FederatedData`, no copies.

    Attributes:
        train_x: [n, *input_shape] float32 own training samples.
        train_y: [n] int64.
        test_x: [m, *input_shape] own test samples, distributed like the training samples.
        test_y: [m] int64.
        transfer_x: [M, *input_shape] the transfer set.
        global_x: [K, *input_shape] the common test set.
        global_y: [K] int64.
        classes: Number of classes C.
        input_shape: Shape of one sample.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    transfer_x: np.ndarray
    global_x: np.ndarray
    global_y: np.ndarray
    classes: int
    input_shape: tuple[int, ...]


@dataclass(frozen=True)
class FederatedData:
    """All data of a federation as plain arrays, so that it crosses processes without a copy.

    Samples are float32, C-contiguous and normalised: uint8 is divided by 255, then the mean of every
    channel (of every feature of a vector) over the data set's whole train split is subtracted and the
    standard deviation divided out.

    Attributes:
        name: Name of the data set.
        class_names: Name of every class, in label order.
        input_shape: (channels, height, width) of an image, (features,) of a vector.
        x: [S, *input_shape] all private samples, client after client, train before test; skewed where the
            scenario has `heterogeneity`.
        y: [S] int64 their labels; wrong ones among them where it has label noise.
        train_bounds: Start and stop of every client's training samples in `x` and `y`.
        test_bounds: Start and stop of every client's test samples.
        source_index: [S] int64 index of every private sample in the data set's train split.
        transfer_x: [M, *input_shape] the transfer set, unlabelled.
        test_x: [K, *input_shape] the common test set.
        test_y: [K] int64.
        transfer_y: [M] int64 labels of a held-out transfer set, for strategies whose server needs them;
            None for other sources. No client sees them.
        skew: What was drawn for every client; empty if clients differ in their labels only.
    """

    name: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]
    x: np.ndarray
    y: np.ndarray
    train_bounds: tuple[tuple[int, int], ...]
    test_bounds: tuple[tuple[int, int], ...]
    source_index: np.ndarray
    transfer_x: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    transfer_y: np.ndarray | None = None
    skew: tuple[Skew, ...] = ()

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.class_names)

    @property
    def num_clients(self) -> int:
        """Number of clients N."""
        return len(self.train_bounds)

    def client(self, n: int) -> ClientData:
        """Return what client `n` sees."""
        train, test = slice(*self.train_bounds[n]), slice(*self.test_bounds[n])
        return ClientData(
            train_x=self.x[train],
            train_y=self.y[train],
            test_x=self.x[test],
            test_y=self.y[test],
            transfer_x=self.transfer_x,
            global_x=self.test_x,
            global_y=self.test_y,
            classes=self.classes,
            input_shape=self.input_shape,
        )

    def label_distribution(self) -> np.ndarray:
        """Return [N, C] float64: the share of every class among each client's training labels."""
        counts = np.stack(
            [np.bincount(self.y[slice(*bounds)], minlength=self.classes) for bounds in self.train_bounds]
        )
        return counts / counts.sum(axis=1, keepdims=True)


def load_federated_data(scenario: Scenario, progress: Progress | None = None) -> FederatedData:
    """Load the data set, deal it to the clients and draw the transfer set.

    Private samples and a held-out transfer set come from the data set's train split, the common test
    set from its test split; no sample is in two places.

    Args:
        scenario: What to simulate; `data` and `seed` decide, and `plugin_path` for files and plug-ins.
        progress: Told one line at a time what takes long (downloads, decoding).

    Raises:
        UserError: Missing or malformed data, or more samples asked for than there are.
    """
    import_plugins(scenario)
    data, seed = scenario.data, scenario.seed
    if (data.transfer.source, data.transfer.args) == (data.dataset, data.args):
        raise UserError(
            "the private data set itself would leak clients' samples; use 'holdout'",
            key="data.transfer.source",
        )
    progress = progress or silent
    root = data_root(data.root)
    search = tuple(Path(folder) for folder in scenario.plugin_path)
    dataset = load_dataset(SourceRequest(data.dataset, root, data.args, search, progress))
    held_out, shards = _deal(dataset, scenario, search)
    order, train_bounds, test_bounds = _local_splits(dataset.train_y, shards, data.test_fraction, seed)

    statistics = measure(dataset.train_x)
    if data.transfer.source == "holdout":
        transfer_x = statistics.normalise(dataset.train_x[held_out])
    elif data.transfer.source == "noise":
        transfer_x = noise(data.transfer.size, dataset.shape, seed=seed)
    else:
        transfer_x = foreign_samples(
            data.transfer.source,
            data.transfer.args,
            data.transfer.size,
            dataset.shape,
            statistics,
            seed=seed,
            root=root,
            search=search,
            progress=progress,
        )
    common = _common_test_set(dataset.test_y, data.test_size, seed)
    skew = draw_skews(scenario.heterogeneity, data.clients, dataset.shape, dataset.classes, seed=seed)
    shares = [(first, last) for (first, _), (_, last) in zip(train_bounds, test_bounds, strict=True)]
    return FederatedData(
        name=dataset.name,
        class_names=dataset.class_names,
        input_shape=dataset.shape,
        x=_private_samples(dataset.train_x[order], statistics, skew, shares, seed),
        y=_private_labels(dataset.train_y[order], dataset.classes, skew, train_bounds, seed),
        train_bounds=train_bounds,
        test_bounds=test_bounds,
        source_index=order,
        transfer_x=transfer_x,
        test_x=statistics.normalise(dataset.test_x[common]),
        test_y=dataset.test_y[common],
        transfer_y=dataset.train_y[held_out] if data.transfer.source == "holdout" else None,
        skew=skew,
    )


def _private_samples(
    stored: np.ndarray, statistics: Statistics, skew: tuple[Skew, ...], shares: Sequence[Bounds], seed: int
) -> np.ndarray:
    """Return all private samples, normalised, those of every client skewed in its own way.

    Args:
        stored: [S, *input_shape] samples as their source stores them, client after client.
        statistics: Of the whole train split, unskewed.
        skew: Of every client, or empty.
        shares: Start and stop of every client's samples, train and test.
        seed: The scenario's seed.
    """
    x = statistics.normalise(stored)
    for client, (drawn, bounds) in enumerate(zip(skew, shares, strict=False)):
        own = slice(*bounds)
        if drawn.angle or drawn.colour:
            x[own] = statistics.normalise(skew_images(stored[own], drawn))
        if drawn.noise:
            x[own] = add_noise(x[own], drawn.noise, numpy_generator(seed, "noise", client=client))
    return x


def _private_labels(
    true: np.ndarray, classes: int, skew: tuple[Skew, ...], train_bounds: Sequence[Bounds], seed: int
) -> np.ndarray:
    """Return the labels [S] of all private samples, some of the training labels wrong."""
    y = true.copy()
    for client, (drawn, bounds) in enumerate(zip(skew, train_bounds, strict=False)):
        own, rng = slice(*bounds), numpy_generator(seed, "label-noise", client=client)
        y[own] = replace_labels(true[own], classes, drawn.label_noise, rng)
    return y


def _deal(
    dataset: Dataset, scenario: Scenario, search: tuple[Path, ...]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the held-out train indices (none unless `holdout`) and every client's train indices."""
    data, samples = scenario.data, len(dataset.train_y)
    everything = np.arange(samples)
    written = None
    available = everything
    if data.partition.scheme == "file":
        written = read_partition_file(data.partition, data.clients, samples, search)
        available = np.setdiff1d(everything, np.concatenate(written))
    held_out = everything[:0]
    if data.transfer.source == "holdout":
        held_out = draw_holdout(available, data.transfer.size, seed=scenario.seed)
    if written is not None:
        return held_out, written
    private = np.setdiff1d(everything, held_out)
    labels, seed = dataset.train_y[private], scenario.seed
    if data.partition.scheme in PARTITIONS.builtin:
        shards = partition(labels, data.clients, data.partition, seed)
    else:
        shards = plugged_partition(labels, data.clients, data.partition, seed, search)
    return held_out, [private[shard] for shard in shards]


def _local_splits(
    labels: np.ndarray, shards: list[np.ndarray], test_fraction: float, seed: int
) -> tuple[np.ndarray, tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Return [S] train indices in storage order, and the bounds of every client's two parts."""
    order: list[np.ndarray] = []
    train_bounds: list[tuple[int, int]] = []
    test_bounds: list[tuple[int, int]] = []
    start = 0
    for client, shard in enumerate(shards):
        train, test = local_split(labels[shard], test_fraction, seed=seed, client=client)
        order += [shard[train], shard[test]]
        middle, stop = start + len(train), start + len(shard)
        train_bounds.append((start, middle))
        test_bounds.append((middle, stop))
        start = stop
    return np.concatenate(order), tuple(train_bounds), tuple(test_bounds)


def _common_test_set(labels: np.ndarray, size: int | None, seed: int) -> np.ndarray:
    """Return the indices of the common test set in the data set's test split, in its order."""
    if size is None:
        return np.arange(len(labels))
    if size > len(labels):
        raise UserError(
            f"must be ≤ {len(labels)}, the test samples there are, got {size}", key="data.test_size"
        )
    return np.flatnonzero(stratified_choice(labels, size, numpy_generator(seed, "common-test-set")))
