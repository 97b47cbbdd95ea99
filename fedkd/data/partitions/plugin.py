"""A user's own function as a partition scheme: `scheme = "pkg.mod:function"`."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.data.partitions.flower_datasets import PREFIX, partitioner_scheme
from fedkd.data.partitions.schemes import fewest_samples
from fedkd.data.registry import PARTITIONS
from fedkd.errors import UserError, blaming, described, refuse_if
from fedkd.plugins import plugin_call
from fedkd.randomness import numpy_generator
from fedkd.scenario import Partition

KEY = "data.partition.scheme"


def plugged_partition(
    labels: np.ndarray,
    clients: int,
    scheme: Partition,
    seed: int,
    search: Sequence[Path] = (),
    *,
    task: int | None = None,
) -> list[np.ndarray]:
    """Partition samples by ``function(labels, clients, generator, **args)``, and check the result."""
    with blaming(key=KEY):
        theirs = scheme.scheme.startswith(PREFIX)
        function = partitioner_scheme(scheme.scheme) if theirs else PARTITIONS.load(scheme.scheme, search)
    name, rng = scheme.scheme, numpy_generator(seed, "partition", task=task)
    refuse_if(not callable(function), f"'{name}' is not callable", KEY)
    try:
        inspect.signature(function).bind("labels", "clients", "generator", **scheme.args)
    except TypeError as error:
        told = f"'{name}' must take (labels, clients, generator, **args): {error}"
        raise UserError(told, key="data.partition.args") from error
    except ValueError:  # compiled callables have no signature to check against
        pass
    with blaming(key=KEY), plugin_call(f"'{name}'", KEY):
        dealt = function(labels, clients, rng, **scheme.args)
    return _checked(dealt, len(labels), clients, scheme)


def _checked(dealt: Any, samples: int, clients: int, scheme: Partition) -> list[np.ndarray]:
    name, floor = scheme.scheme, fewest_samples(scheme)
    is_list = isinstance(dealt, Sequence) or (isinstance(dealt, np.ndarray) and dealt.ndim > 0)
    if not is_list or len(dealt) != clients:
        got = f"{len(dealt)} entries" if is_list else type(dealt).__name__
        raise UserError(f"'{name}' must return a list of {clients} index arrays, got {got}", key=KEY)
    shards = []
    owner = np.full(samples, -1)
    for client, indices in enumerate(dealt):
        try:
            shard = np.asarray(indices)
        except Exception as error:  # lists of unequal lengths, tensors on other devices
            told = f"'{name}' returned no indices for client {client}: {described(error)}"
            raise UserError(told, key=KEY) from error
        told = f"'{name}' must return integer indices [n] for each client, got {shard.dtype} of shape"
        refuse_if(
            shard.ndim != 1 or shard.dtype.kind not in "ui", f"{told} {shard.shape} for client {client}", KEY
        )
        shard = np.sort(shard.astype(np.int64))
        if shard.size and not 0 <= shard[0] <= shard[-1] < samples:
            told = f"'{name}' gave client {client} indices in {shard[0]}..{shard[-1]},"
            raise UserError(f"{told} must be in 0..{samples - 1}", key=KEY)
        told = f"'{name}' gave client {client} {len(shard)} samples, must be ≥ {floor} (min_samples)"
        refuse_if(len(shard) < floor, told, KEY)
        if (np.diff(shard) == 0).any() or (owner[shard] >= 0).any():
            told = f"'{name}' gave client {client} a sample twice, or a sample of another client"
            raise UserError(told, key=KEY)
        owner[shard] = client
        shards.append(shard)
    return shards
