"""Data sets and partition schemes by name."""

from __future__ import annotations

from fedkd.data.dataset import Dataset
from fedkd.data.request import SourceRequest
from fedkd.errors import UserError
from fedkd.plugins import Registry

DATASETS = Registry(
    "data set",
    {
        "digits": "fedkd.data.sources.digits:load",
        "mnist": "fedkd.data.sources.mnist:load",
        "fashion-mnist": "fedkd.data.sources.fashion_mnist:load",
        "cifar10": "fedkd.data.sources.cifar10:load",
        "cifar100": "fedkd.data.sources.cifar100:load",
        "synthetic": "fedkd.data.sources.synthetic:load",
        "npz": "fedkd.data.sources.npz:load",
        "image-folder": "fedkd.data.sources.image_folder:load",
    },
    group="fedkd.datasets",
)
"""Every value is a function `load(request: SourceRequest) -> Dataset`; a plug-in takes `data.args`."""

PARTITIONS = Registry(
    "partition scheme",
    {
        "iid": "fedkd.data.partition:deal_iid",
        "dirichlet": "fedkd.data.partition:dirichlet_counts",
        "dirichlet-per-client": "fedkd.data.partition:draw_label_mixes",
        "shards": "fedkd.data.partition:deal_shards",
        "circle": "fedkd.data.partition:circle_mixes",
        "quantity": "fedkd.data.partition:draw_sizes",
        "natural": "fedkd.data.partition_natural:deal_by_owner",
        "file": "fedkd.data.partition_file:read_partition_file",
    },
    group="fedkd.partitions",
)
"""What each scheme is at heart; `fedkd.data.partition` deals by them. A plug-in is a
``function(labels, clients, generator, **args)`` that returns index arrays, one a client."""


def load_dataset(
    request: SourceRequest, *, key: str = "data.dataset", args_key: str = "data.args"
) -> Dataset:
    """Load the data set that `request` names, a built-in one or a plugged-in function's.

    Args:
        request: What to load and where to look.
        key: Scenario key that named it.
        args_key: Scenario key of its arguments.

    Raises:
        UserError: No such data set, or its files are missing or malformed.
    """
    try:
        source = DATASETS.load(request.name, request.search)
        if request.name in DATASETS.builtin:
            return source(request)
        from fedkd.data.sources.plugin import call

        return call(source, request)
    except UserError as error:
        # Sources speak of the keys of `[data]`, whichever table asked for them.
        told = (error.key or key).replace("data.args", args_key).replace("data.dataset", key)
        raise UserError(error.message, key=told, file=error.file) from error
