"""The partition that the data come with: `scheme = "natural"`, every client one of the samples' owners."""

from __future__ import annotations

import numpy as np

from fedkd.data.partition import fewest_samples
from fedkd.errors import UserError
from fedkd.randomness import numpy_generator
from fedkd.scenario.schema import Partition

KEY = "data.partition.scheme"


def deal_by_owner(
    owners: np.ndarray | None, clients: int, scheme: Partition, seed: int, *, task: int | None = None
) -> list[np.ndarray]:
    """Give every client the samples of one owner (see `partition`).

    Owners of fewer than `min_samples` are no clients. From more owners than clients, the clients are drawn
    once; they are in the order of their owners. In a task every owner needs enough samples, so that clients
    are the same in all tasks.

    Args:
        owners: [n] owner of every sample that may be dealt, a number or a name; None: the data name none.

    Raises:
        UserError: There are no owners, or too few that have enough samples.
    """
    if owners is None:
        raise UserError(
            "'natural' needs data that say whose each sample is: 'synthetic', or `owners` beside the arrays"
            " of an npz file or of a function of your own",
            key=KEY,
        )
    floor = fewest_samples(scheme)
    names, sizes = np.unique(owners, return_counts=True)
    by_owner = np.split(np.argsort(owners, kind="stable"), np.cumsum(sizes)[:-1])
    fit = np.flatnonzero(sizes >= floor) if task is None else np.arange(len(names))
    if len(fit) < clients:
        raise UserError(
            f"must be ≤ {len(fit)}, the owners of at least {floor} samples (data.partition.min_samples; there"
            f" are {len(names)} owners), got {clients}",
            key="data.clients",
        )
    chosen = np.sort(numpy_generator(seed, "owners").choice(fit, clients, replace=False))
    if sizes[chosen].min() < floor:
        client = int(sizes[chosen].argmin())
        named = f" ('{names[chosen[client]]}')" if names.dtype.kind == "U" else ""
        raise UserError(
            f"the owner that client {client}{named} stands for has {int(sizes[chosen].min())} samples of the"
            f" task, needs {floor}",
            key="data.partition.min_samples",
        )
    return [by_owner[place] for place in chosen]
