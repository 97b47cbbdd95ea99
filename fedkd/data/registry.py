"""Data sets and partition schemes by name."""

from fedkd.data.dataset import Dataset
from fedkd.data.request import SourceRequest
from fedkd.errors import UserError, refuse_if
from fedkd.plugins import Registry

DATASETS = Registry(
    "data set",
    {
        "digits": "fedkd.data.sources.digits:load",
        "mnist": "fedkd.data.sources.idx:load_mnist",
        "fashion-mnist": "fedkd.data.sources.idx:load_fashion_mnist",
        "cifar10": "fedkd.data.sources.cifar:load_cifar10",
        "cifar100": "fedkd.data.sources.cifar:load_cifar100",
        "synthetic": "fedkd.data.sources.synthetic:load",
        "waveform": "fedkd.data.sources.waveform:load",
        "ts": "fedkd.data.sources.ts:load",
        "subspace": "fedkd.data.sources.subspace:load",
        "npz": "fedkd.data.sources.npz:load",
        "table": "fedkd.data.sources.table:load",
        "hf": "fedkd.data.sources.hf:load",
        "image-folder": "fedkd.data.sources.image_folder:load",
        "diabetes": "fedkd.data.sources.diabetes:load",
        "vader": "fedkd.data.sources.vader:load",
        "order": "fedkd.data.sources.order:load",
        "topics": "fedkd.data.sources.topics:load",
    },
    group="fedkd.datasets",
)
"""Every value is a function `load(request: SourceRequest) -> Dataset`; a plug-in takes `data.args`."""

WITH_TARGETS = ("table", "npz", "diabetes", "ts", "hf", "vader")
"""Built-in data sets with targets for regression."""

PARTITIONS = Registry(
    "partition scheme",
    {
        "iid": "fedkd.data.partitions.schemes:deal_iid",
        "dirichlet": "fedkd.data.partitions.schemes:dirichlet_counts",
        "dirichlet-per-client": "fedkd.data.partitions.schemes:draw_label_mixes",
        "shards": "fedkd.data.partitions.schemes:deal_shards",
        "circle": "fedkd.data.partitions.schemes:circle_mixes",
        "quantity": "fedkd.data.partitions.schemes:draw_sizes",
        "natural": "fedkd.data.partitions.schemes:deal_by_owner",
        "file": "fedkd.data.partitions.from_file:read_partition_file",
    },
    group="fedkd.partitions",
    absent={"column": "'natural' gives each client the samples of one value of columns.client"},
)
"""Core function of each scheme. A plug-in is a ``function(labels, clients, generator, **args)`` that returns
one index array per client."""


def load_dataset(
    request: SourceRequest, *, key: str = "data.dataset", args_key: str = "data.args"
) -> Dataset:
    """Load the data set that `request` names; errors blame the scenario keys `key` or `args_key`."""
    try:
        source = DATASETS.load(request.name, request.search)
        if request.name in DATASETS.builtin:
            told = f"'{request.name}' has classes; data.task = 'regression' needs numeric targets:"
            fits = request.name in WITH_TARGETS or not request.regression
            refuse_if(not fits, f"{told} use {', '.join(WITH_TARGETS)} or a plug-in", "data.dataset")
            return source(request)
        from fedkd.data.sources.plugin import call

        return call(source, request)
    except UserError as error:
        # Sources name keys of `[data]`, for every table.
        told = (error.key or key).replace("data.args", args_key).replace("data.dataset", key)
        raise UserError(error.message, key=told, file=error.file) from error
