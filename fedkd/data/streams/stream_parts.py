"""The tasks of each kind of stream, before output units are assigned.

`split`, `permuted` and `rotated` follow van de Ven & Tolias (2019), arXiv:1904.07734, and Lopez-Paz & Ranzato
(2017), arXiv:1706.08840; `overlapping` and `datasets` follow Lin et al. (2022), arXiv:2211.00789. A `rotated`
stream begins upright, and a `permuted` one unpermuted unless `permute_first` is set.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.federated import FederatedData, federate
from fedkd.data.kinds import SampleKind
from fedkd.data.partitions.from_file import read_partition_file
from fedkd.data.partitions.schemes import LEAST_SAMPLES
from fedkd.data.scenario_sources import Sources
from fedkd.data.streams.pixels import Permutation, Rotation, Transform, to_shape
from fedkd.data.streams.stream_plan import class_groups
from fedkd.errors import UserError, refuse_if
from fedkd.randomness import numpy_generator
from fedkd.scenario import TaskStream, planned_task_count


@dataclass(frozen=True)
class Part:
    """A task before output units are assigned; label y is the class with identity `classes[y]`."""

    name: str
    classes: tuple[int, ...]
    data: FederatedData
    transform: Transform | None = None


def grouped_classes(tasks: TaskStream, dataset: Dataset, sources: Sources) -> Iterator[Part]:
    """Yield a task for every group of classes, normalised like the whole data set."""
    scenario, labels = sources.scenario, dataset.train_y
    groups = class_groups(tasks, dataset.classes, seed=scenario.seed)
    statistics = sources.statistics(dataset)
    public = sources.public_samples(dataset, statistics)
    written = None
    if scenario.data.partition.scheme == "file":
        partition, clients = scenario.data.partition, scenario.data.clients
        written = read_partition_file(partition, clients, len(labels), sources.search)
    for index, group in enumerate(groups):
        own, members = _restrict(dataset, group)
        name = " ".join(own.class_names)
        with _told_of(index, name):
            refuse_if(len(own.test_y) == 0, "no test sample has one of its classes", "continual.tasks.kind")
            shards = None if written is None else _written_within(members, written)
            data = federate(own, statistics, sources, public, task=index, written=shards)
        yield Part(name, group, replace(data, source_index=members[data.source_index]))


def _restrict(dataset: Dataset, group: tuple[int, ...]) -> tuple[Dataset, np.ndarray]:
    """Return the samples of a group of classes, relabelled by place, and the train samples' indices."""
    label = np.full(dataset.classes, -1)
    label[list(group)] = np.arange(len(group))
    train, test = (np.flatnonzero(label[y] >= 0) for y in (dataset.train_y, dataset.test_y))
    own = replace(
        dataset,
        class_names=tuple(dataset.class_names[c] for c in group),
        train_x=dataset.train_x[train],
        train_y=label[dataset.train_y[train]],
        test_x=dataset.test_x[test],
        test_y=label[dataset.test_y[test]],
        owners=None if dataset.owners is None else dataset.owners[train],
    )
    return own, train


def _written_within(members: np.ndarray, written: Sequence[np.ndarray]) -> list[np.ndarray]:
    place = np.full(int(max(shard.max() for shard in written)) + 1, -1)
    place[members[members < len(place)]] = np.flatnonzero(members < len(place))
    places = [place[shard] for shard in written]
    shards = [np.sort(own[own >= 0]) for own in places]
    for client, shard in enumerate(shards):
        told = f"client {client} has {len(shard)} samples of the task's classes, it needs {LEAST_SAMPLES}:"
        refuse_if(
            len(shard) < LEAST_SAMPLES, f"{told} one to train on and one to test on", "data.partition.path"
        )
    return shards


def changed_pixels(tasks: TaskStream, dataset: Dataset, sources: Sources) -> Iterator[Part]:
    """Yield the whole data set once per task, permuted or rotated."""
    key = "continual.tasks.kind"
    told = f"'rotated' needs images, but the samples are {dataset.kind.plural} {list(dataset.shape)}"
    refuse_if(tasks.kind == "rotated" and "rotation" not in dataset.kind.heterogeneity, told, key)
    statistics = sources.statistics(dataset)
    data = federate(dataset, statistics, sources, sources.public_samples(dataset, statistics))
    count = planned_task_count(tasks) or 1
    pixels = prod(data.input_shape[1:] if len(data.input_shape) == 3 else data.input_shape)
    for index in range(count):
        classes = tuple(range(index * data.classes, (index + 1) * data.classes))
        transform: Transform | None = None
        if tasks.kind == "permuted":
            name = f"permutation {index}" if index or tasks.permute_first else "unpermuted"
            if index or tasks.permute_first:
                draw = numpy_generator(sources.scenario.seed, "permutation", task=index)
                transform = Permutation(draw.permutation(pixels))
        else:
            degrees = index * tasks.max_angle / count
            name = f"{degrees:g}°"
            black = (-statistics.mean / statistics.std).astype(np.float32)
            transform = Rotation(degrees, black) if index else None
        yield Part(name, classes, data, transform)


def data_sets(tasks: TaskStream, sources: Sources) -> Iterator[Part]:
    """Yield a task for every data set, each normalised by its own statistics."""
    data, first = sources.scenario.data, 0
    names = tasks.datasets or [data.dataset]
    count = tasks.count or len(names)
    told = f"must be ≤ {len(names)}, the number of data sets, got {count}"
    refuse_if(count > len(names), told, "continual.tasks.count")
    told = "a file lists indices of one data set, but the stream has several"
    refuse_if(data.partition.scheme == "file" and count > 1, told, "data.partition.scheme")
    shape = tuple(tasks.shape) if tasks.shape else None
    of_first: SampleKind | None = None
    for index, name in enumerate(names[:count]):
        args, key = data.args if name == data.dataset else {}, f"continual.tasks.datasets.{index}"
        dataset = sources.dataset(name, args, key=key)
        shape = shape or dataset.shape
        dataset = to_shape(dataset, shape)
        of_first = of_first or dataset.kind
        told = f"samples of '{name}' are {dataset.kind.plural}, those of '{names[0]}' {of_first.plural}"
        refuse_if(dataset.kind != of_first, told, key)
        statistics = sources.statistics(dataset)
        public = sources.public_samples(dataset, statistics)
        with _told_of(index, name):
            dealt = federate(dataset, statistics, sources, public, task=index)
        yield Part(name, tuple(range(first, first + dataset.classes)), dealt)
        first += dataset.classes


@contextmanager
def _told_of(index: int, name: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"task {index} ({name}): {error.message}", key=error.key, file=error.file) from error
