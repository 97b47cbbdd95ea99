"""The data of one federation: every client's shard, the transfer set, the common test set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.heterogeneity import Skew, add_noise, draw_skews, replace_labels, skew_images
from fedkd.data.kinds import INFERRED, SampleKind, inferred_kind, with_vocabulary
from fedkd.data.memory_budget import check_memory_budget
from fedkd.data.normalise import Statistics
from fedkd.data.partitions.replacement import SIZE
from fedkd.data.partitions.split_samples import SampleSplit, split_samples
from fedkd.data.request import ProgressCallback, silent
from fedkd.data.scenario_sources import Sources
from fedkd.data.targets import TargetScale
from fedkd.data.transfer import PublicSamples
from fedkd.errors import refuse_if
from fedkd.plugins import import_plugins
from fedkd.randomness import numpy_generator
from fedkd.scenario import Scenario


@dataclass(frozen=True)
class ClientData:
    """The data of one client: views into `FederatedData`, no copies.

    `train_x` [n, *input_shape] is float32, or int64 of integers, like the local test samples `test_x` [m,
    …], the transfer set `transfer_x` [M, …] and the common test set `global_x` [K, …]. Labels are int64.
    `public_y` [M] labels the transfer set for clients that train on it; else None. `test_sample` is the part
    of the common test set for rounds before the last; None: all of it. In regression, labels are float32 [n,
    O] targets in the `scale`, and `classes` is the number of a model's outputs.
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
    public_y: np.ndarray | None = None
    test_sample: tuple[np.ndarray, np.ndarray] | None = None
    scale: TargetScale | None = None


@dataclass(frozen=True)
class FederatedData:
    """All data of a federation as plain arrays, which processes share without a copy.

    Samples are C-contiguous float32, uint8 divided by 255. Every channel (feature of a vector) has zero mean
    and unit variance over the train split. Without normalisation integers are int64. In regression, labels
    are float32 [n, O] standardised targets, and `class_names` names their quantile bins.
    """

    name: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, ...]  # [C, H, W] of an image, [F] of a vector, as `kind` says
    x: np.ndarray
    """[S, *input_shape] private samples, client after client, train before test, with clients' skew."""
    y: np.ndarray  # [S] int64 their labels, with label noise
    train_bounds: tuple[tuple[int, int], ...]
    """Start and stop of every client's training samples in `x` and `y`."""
    test_bounds: tuple[tuple[int, int], ...]
    source_index: np.ndarray  # [S] int64 index of every private sample in the data set's train split
    transfer_x: np.ndarray  # [M, *input_shape] the transfer set, unlabelled
    test_x: np.ndarray  # [K, *input_shape] the common test set
    test_y: np.ndarray
    transfer_y: np.ndarray | None = None
    """[M] int64 labels of a held-out transfer set, for servers and for pretraining clients; else None."""
    foreign_y: np.ndarray | None = None
    """[M] int64 labels of a transfer set from another data set, in its classes; else None."""
    skew: tuple[Skew, ...] = ()  # drawn skew of every client; empty if clients differ only in their labels
    statistics: Statistics | None = None  # normalisation for samples that come later; None: unknown
    owners: tuple[str, ...] = ()  # name of each client's owner; empty if the data name none
    kind: SampleKind = INFERRED
    """Kind of the samples, inferred unless given."""
    scale: TargetScale | None = None  # of the targets of regression; None: labels are classes

    def __post_init__(self) -> None:
        kind = inferred_kind(self.input_shape, self.x.dtype) if self.kind == INFERRED else self.kind
        object.__setattr__(self, "kind", with_vocabulary(kind, self.transfer_x))

    @property
    def classes(self) -> int:
        """Number of classes C; in regression, of a model's outputs."""
        return len(self.class_names) if self.scale is None else self.scale.outputs

    @property
    def public_y(self) -> np.ndarray | None:
        """Labels [M] of the transfer set to pretrain on; None: it has none."""
        return self.foreign_y if self.transfer_y is None else self.transfer_y

    @property
    def input_dtype(self) -> np.dtype:
        """Type of the samples: float32, or int64 of integers."""
        return self.x.dtype

    @property
    def num_clients(self) -> int:
        """Number of clients N."""
        return len(self.train_bounds)

    def client(self, n: int) -> ClientData:
        """Return the data of client `n`."""
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
            scale=self.scale,
        )

    def label_counts(self) -> np.ndarray:
        """Return [N, C] int64: each client's training samples of every class, or bin of targets."""
        labels = self.y if self.scale is None else self.scale.bins(self.y)
        classes = len(self.class_names)
        bounds = np.array(self.train_bounds).reshape(-1, 2)
        sizes = bounds[:, 1] - bounds[:, 0]
        owner = np.repeat(np.arange(self.num_clients), sizes)
        first = np.repeat(bounds[:, 0] - np.cumsum(sizes) + sizes, sizes)  # less what comes before, of all
        cells = owner * classes + labels[first + np.arange(len(owner))]
        counts = np.bincount(cells, minlength=self.num_clients * classes)
        return counts.reshape(-1, classes)

    def label_distribution(self) -> np.ndarray:
        """Return [N, C] float64: the share of every class among each client's training labels."""
        counts = self.label_counts()
        return counts / counts.sum(axis=1, keepdims=True)


def load_federated_data(scenario: Scenario, progress: ProgressCallback | None = None) -> FederatedData:
    """Load the data set, partition it and draw the transfer set."""
    import_plugins(scenario.plugins, scenario.plugin_path)
    sources = Sources(scenario, progress or silent)
    dataset = sources.dataset(scenario.data.dataset, scenario.data.args)
    statistics = sources.statistics(dataset)
    return federate(dataset, statistics, sources, sources.public_samples(dataset, statistics))


def federate(
    dataset: Dataset,
    statistics: Statistics,
    sources: Sources,
    public: PublicSamples | None,
    *,
    task: int | None = None,
    written: Sequence[np.ndarray] | None = None,
) -> FederatedData:
    """Partition a data set among the clients.

    Transfer samples are held out if `public` is None. Each `task` has its own draws; only a client's skew is
    the same in all tasks. `written` has every client's train indices from a file; None: the scheme decides.
    """
    scenario, seed = sources.scenario, sources.scenario.seed
    for key, value in scenario.heterogeneity:
        told = f"must be 0, because the samples are {dataset.kind.plural} {list(dataset.shape)}"
        refuse_if(value and key not in dataset.kind.heterogeneity, told, f"heterogeneity.{key}")
    split = split_samples(dataset, scenario, sources.search, task=task, written=written)
    clients, held_out, common = scenario.data.clients, split.held_out, split.common
    if scenario.data.partition.replacement:
        told = f"{len(split.private):,} samples of {clients:,} clients take"
        check_memory_budget(4 * len(split.private) * prod(dataset.shape), told, SIZE)
    skew = draw_skews(scenario.heterogeneity, clients, dataset.shape, dataset.classes, seed=seed)
    x, y = _private_samples(dataset, statistics, split, skew, seed, task)
    tests = (dataset.train_x, dataset.train_y) if split.validates else (dataset.test_x, dataset.test_y)
    owners = dataset.owners if scenario.data.partition.scheme == "natural" else None
    names = owners if owners is not None and owners.dtype.kind == "U" else None
    scale = sources.target_scale(dataset)
    labels: Callable[[np.ndarray], np.ndarray] = as_they_are if scale is None else scale.standardise
    foreign = None if public is None or public.y is None else labels(public.y)
    return FederatedData(
        name=dataset.name,
        class_names=dataset.class_names if scale is None else scale.bin_names,
        input_shape=dataset.shape,
        x=x,
        y=labels(y),
        train_bounds=split.train_bounds,
        test_bounds=split.test_bounds,
        source_index=split.private,
        transfer_x=statistics.normalise(dataset.train_x[held_out]) if public is None else public.x,
        test_x=statistics.normalise(tests[0][common]),
        test_y=labels(tests[1][common]),
        transfer_y=labels(dataset.train_y[held_out]) if public is None else None,
        foreign_y=foreign,
        skew=skew,
        statistics=statistics,
        kind=dataset.kind,
        owners=() if names is None else tuple(str(names[split.private[start]]) for start, _ in split.shares),
        scale=scale,
    )


def as_they_are(labels: np.ndarray) -> np.ndarray:
    """Return labels of classes."""
    return labels


def _private_samples(
    dataset: Dataset,
    statistics: Statistics,
    split: SampleSplit,
    skew: Sequence[Skew],
    seed: int,
    task: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return all private samples [S, *input_shape], normalised and skewed, and labels [S]."""
    y = dataset.train_y[split.private]
    if len(split.private) > len(dataset.train_y):  # drawn with replacement: fewer to normalise
        x = statistics.normalise(dataset.train_x)[split.private]
    else:
        x = statistics.normalise(dataset.train_x[split.private])
    # Held-out samples are like training samples, wrong labels included.
    mislabelled = split.shares if split.validates else split.train_bounds
    for client, drawn in enumerate(skew):
        own, noisy = slice(*split.shares[client]), slice(*mislabelled[client])
        if drawn.angle or drawn.colour:
            stored = dataset.train_x[split.private[own]]
            x[own] = statistics.normalise(skew_images(stored, drawn))
        if drawn.noise:
            x[own] = add_noise(x[own], drawn.noise, numpy_generator(seed, "noise", client=client, task=task))
        if drawn.label_noise:
            rng = numpy_generator(seed, "label-noise", client=client, task=task)
            y[noisy] = replace_labels(y[noisy], dataset.classes, drawn.label_noise, rng)
    return x, y
