"""The partitioners of flwr-datasets as schemes: `scheme = "flwr_datasets:DirichletPartitioner"`."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from fedkd.errors import UserError, did_you_mean, refuse_if
from fedkd.plugins import require_package

PREFIX = "flwr_datasets:"
KEY = "data.partition.scheme"
UNFIT = {
    "NaturalIdPartitioner": "the scheme 'natural' gives each client one owner's samples",
    "GroupedNaturalIdPartitioner": "the scheme 'natural' gives each client one owner's samples",
    "VerticalEvenPartitioner": "it divides features, and clients here have the same features",
    "VerticalSizePartitioner": "it divides features, and clients here have the same features",
}


def partitioner_scheme(scheme: str) -> Callable[..., list[np.ndarray]]:
    """Return a partitioner as a function of labels [n], the number of clients, a generator and its arguments.

    The package draws from a seed, which the generator draws. `partition_by` is the label.
    """
    name = scheme.removeprefix(PREFIX)
    refuse_if(name in UNFIT, f"'{name}' does not fit: {UNFIT.get(name)}", KEY)
    known = require_package("flwr_datasets.partitioner", f"the scheme '{scheme}'", "partitioners")
    names = [one for one in known.__all__ if one not in UNFIT and one != "Partitioner"]
    refuse_if(name not in names, f"no partitioner '{name}'; {did_you_mean(name, names)}", KEY)
    made = getattr(known, name)
    takes = inspect.signature(made).parameters

    def deal(
        labels: np.ndarray, clients: int, generator: np.random.Generator, **args: Any
    ) -> list[np.ndarray]:
        from datasets import Dataset

        for key in args:
            told = f"unknown argument of '{name}'; {did_you_mean(key, takes)}"
            refuse_if(key not in takes, told, f"data.partition.args.{key}")
        ours = {"num_partitions": clients, "partition_by": "label", "seed": int(generator.integers(2**31))}
        arrays = {key: np.array(value) for key, value in args.items() if key == "distribution_array"}
        given = {key: value for key, value in ours.items() if key in takes} | args | arrays
        try:
            partitioner = made(**given)
            partitioner.dataset = Dataset.from_dict({"label": labels, "row": np.arange(len(labels))})
            count = partitioner.num_partitions
            parts = [np.array(partitioner.load_partition(n)["row"], np.int64) for n in range(count)]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"'{name}': {error}", key="data.partition.args") from error
        refuse_if(count != clients, f"'{name}' makes {count} partitions, must be {clients}", "data.clients")
        return parts

    return deal
