"""The data of one participant of a federation, without those of others."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.federated import FederatedData
from fedkd.data.load import Data
from fedkd.data.normalise import Statistics
from fedkd.data.partitions.stratified import local_split
from fedkd.errors import UserError, refuse_if
from fedkd.scenario import Scenario

NOBODYS = (0, 0)  # bounds of another client's samples


@dataclass(frozen=True, eq=False)
class Share:
    """The data of a client, or of the server (None), with empty bounds of all other clients."""

    client: int | None
    data: Data

    @property
    def owner(self) -> str:
        """The participant, in words."""
        return "the server" if self.client is None else f"client {self.client}"

    @property
    def parts(self) -> list[FederatedData]:
        """The data of every task; without a stream, all of them."""
        return [self.data] if isinstance(self.data, FederatedData) else [task.data for task in self.data]

    def common_digest(self) -> str:
        """Return the SHA-256 of the common data: classes, scale and transfer set."""
        found = hashlib.sha256()
        for part in self.parts:
            assert part.statistics is not None
            found.update(repr((part.class_names, part.input_shape, str(part.input_dtype))).encode())
            for values in (part.statistics.mean, part.statistics.std, part.transfer_x):
                found.update(np.ascontiguousarray(values).tobytes())
        return found.hexdigest()


def share_of_client(data: Data, client: int, *, public_labels: bool = False) -> Share:
    """Return the data of one client, optionally with the transfer set's labels."""

    def cut(part: FederatedData) -> FederatedData:
        own = part.client(client)
        return replace(
            of_one_client(part, client, len(own.train_y), len(own.test_y)),
            x=np.concatenate([own.train_x, own.test_x]),
            y=np.concatenate([own.train_y, own.test_y]),
            transfer_y=None,
            foreign_y=part.public_y if public_labels else None,
        )

    return Share(client, _in_every_part(data, cut))


def share_of_server(data: Data, *, transfer_labels: bool = False) -> Share:
    """Return the data of the server, with the transfer set's labels if its strategy needs them."""

    def cut(part: FederatedData) -> FederatedData:
        none = {name: getattr(part, name)[:0] for name in ("x", "y", "test_x", "test_y")}
        labels = part.transfer_y if transfer_labels else None
        return replace(of_one_client(part, None, 0, 0), **none, transfer_y=labels, foreign_y=None)

    return Share(None, _in_every_part(data, cut))


def share_of_samples(
    scenario: Scenario, client: int, samples: Dataset, statistics: Statistics, transfer_x: np.ndarray
) -> Share:
    """Return the share of a client with its own train split; all have the same test split."""
    total = len(samples.train_y)
    if total < 2:
        raise UserError(f"a client needs at least 2 samples, got {total}")
    told = f"transfer samples must have shape {list(samples.shape)}, got {list(transfer_x.shape[1:])}"
    refuse_if(transfer_x.shape[1:] != samples.shape, told, None)
    train, test = local_split(samples.train_y, scenario.data.test_fraction, seed=scenario.seed, client=client)
    order = np.concatenate([train, test])
    whole = FederatedData(
        name=samples.name,
        class_names=samples.class_names,
        input_shape=samples.shape,
        x=statistics.normalise(samples.train_x[order]),
        y=samples.train_y[order],
        train_bounds=(NOBODYS,) * scenario.data.clients,
        test_bounds=(NOBODYS,) * scenario.data.clients,
        source_index=order,
        transfer_x=statistics.normalise(transfer_x),
        test_x=statistics.normalise(samples.test_x),
        test_y=samples.test_y,
        kind=samples.kind,
        statistics=statistics,
    )
    return Share(client, of_one_client(whole, client, len(train), len(test)))


def of_one_client(part: FederatedData, client: int | None, train: int, test: int) -> FederatedData:
    """Return data with the bounds of one client's `train` and then `test` samples."""
    own = ((0, train), (train, train + test))
    bounds = [tuple(b if n == client else NOBODYS for n in range(part.num_clients)) for b in own]
    index = np.arange(train + test)
    return replace(part, train_bounds=bounds[0], test_bounds=bounds[1], source_index=index, skew=())


def _in_every_part(data: Data, cut: Callable[[FederatedData], FederatedData]) -> Data:
    if isinstance(data, FederatedData):
        return cut(data)
    tasks = []
    for task in data:
        own = cut(task.data)
        if task.transform is not None:
            x = task.transform(own.x) if len(own.x) else own.x
            own = replace(own, x=x, transfer_x=task.transfer_x, test_x=task.test_x[: len(own.test_x)])
        tasks.append(replace(task, data=own, transform=None))
    return replace(data, tasks=tuple(tasks))
