"""A partition from a JSON file: `scheme = "file"`."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fedkd.data.partitions.schemes import fewest_samples
from fedkd.errors import UserError, refuse_if
from fedkd.plugins import show_value
from fedkd.scenario import Partition, find_file
from fedkd.storage import InvalidJson, parse_json

KEY = "data.partition.path"


def read_partition_file(
    scheme: Partition, clients: int, samples: int, search: Iterable[Path] = ()
) -> list[np.ndarray]:
    """Return the sorted int64 indices of each client from a JSON file, all below `samples`."""
    if not scheme.path:
        raise UserError("scheme 'file' needs the path of a JSON file", key=KEY)
    path = find_file(scheme.path, search, key=KEY)
    try:
        lists = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", key=KEY) from error
    except InvalidJson as error:
        raise UserError(f"{path} is not valid JSON: {error}", key=KEY) from error
    if not isinstance(lists, list) or not all(isinstance(indices, list) for indices in lists):
        raise UserError(f"{path} must hold a list with one list of indices per client", key=KEY)
    told = f"{path} has lists for {len(lists)} clients, must have {clients} (data.clients)"
    refuse_if(len(lists) != clients, told, KEY)
    owner: dict[int, int] = {}
    floor = fewest_samples(scheme)
    for client, indices in enumerate(lists):
        size = len(indices)
        told = f"client {client} has {size} samples, must have ≥ {floor} (min_samples)"
        refuse_if(size < floor, told, KEY)
        if scheme.samples_per_client not in (None, size):
            raise UserError(
                f"must be absent with scheme 'file', got {scheme.samples_per_client};"
                f" the file has {size} samples for client {client}",
                key="data.partition.samples_per_client",
            )
        for index in indices:
            if type(index) is not int or not 0 <= index < samples:
                told = f"client {client}: index {show_value(index)} is not in 0..{samples - 1}"
                raise UserError(told, key=KEY)
            if index in owner:
                told = f"index {index} is listed twice, for clients {owner[index]} and {client}"
                raise UserError(told, key=KEY)
            owner[index] = client
    return [np.sort(np.array(indices, dtype=np.int64)) for indices in lists]
