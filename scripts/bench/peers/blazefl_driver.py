"""BlazeFL 2.0 by its public interface: its FedAvg on a pool of processes, tensors in shared memory.

It asks for Python 3.12. A round starts a pool and ends it, and every client's job is sent a copy of the data
set's object. So that carries nothing: images are in memory before processes are forked, and each has them
without a copy. A loader takes a batch at once, not sample by sample. The server evaluates
the global model with as many threads as there are processes, which have ended by then.
"""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path

import torch
from blazefl.contrib.fedavg import (
    FedAvgBaseServerHandler,
    FedAvgPartitionType,
    FedAvgProcessPoolClientTrainer,
)
from blazefl.core import IPCMode
from common import BATCH, LR, SEED, Rounds, as_tensors, lenet, load_images, run_driver
from torch import Generator, Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

TEST = -1
HELD: dict[int, tuple[Tensor, Tensor]] = {}
"""Images and labels of each client, and of the test; processes that are forked have them as they are."""


class Network(StrEnum):
    """The networks there are to select from."""

    LENET = "lenet"


class Networks:
    """Makes the one network there is."""

    def select_model(self, model_name: Network) -> torch.nn.Module:
        """Return it."""
        return lenet()


class Held(Dataset):
    """What is held of a client, taken by indices of a whole batch."""

    def __init__(self, owner: int) -> None:
        self._owner = owner

    def __len__(self) -> int:
        return len(HELD[self._owner][1])

    def __getitem__(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        x, y = HELD[self._owner]
        return x[rows], y[rows]


class Dealt:
    """BlazeFL's view of all samples."""

    def get_dataset(self, type_: FedAvgPartitionType, cid: int | None) -> Dataset:
        """Return a client's samples, or those of the test."""
        return Held(TEST if cid is None else cid)

    def set_dataset(self, type_: FedAvgPartitionType, cid: int | None, dataset: Dataset) -> None:
        """Leave a client's samples as they are."""

    def get_dataloader(
        self,
        type_: FedAvgPartitionType,
        cid: int | None,
        batch_size: int | None,
        generator: Generator | None,
    ) -> DataLoader:
        """Return a loader of whole batches, which shuffles a client's samples."""
        held = self.get_dataset(type_, cid)
        order = SequentialSampler(held) if cid is None else RandomSampler(held, generator=generator)
        return DataLoader(held, sampler=BatchSampler(order, batch_size, drop_last=False), batch_size=None)


def drive(folder: Path, rounds: int, processes: int, took: Rounds) -> None:
    """Run rounds of BlazeFL's FedAvg, whose server evaluates the global model."""
    images = load_images(folder)
    HELD[TEST] = as_tensors(images.test_x, images.test_y)
    for client in range(images.clients):
        HELD[client] = as_tensors(images.x[images.of(client)], images.y[images.of(client)])
    server = FedAvgBaseServerHandler(
        Networks(), Network.LENET, Dealt(), rounds, images.clients, 1.0, "cpu", 1000, SEED
    )
    with tempfile.TemporaryDirectory() as kept:
        clients = FedAvgProcessPoolClientTrainer(
            model_selector=Networks(),
            model_name=Network.LENET,
            share_dir=Path(kept) / "share",
            state_dir=Path(kept) / "state",
            dataset=Dealt(),
            device="cpu",
            num_clients=images.clients,
            epochs=1,
            batch_size=BATCH,
            lr=LR,
            seed=SEED,
            num_parallels=processes,
            ipc_mode=IPCMode.SHARED_MEMORY,
        )
        while not server.if_stop():
            torch.set_num_threads(1)  # what is forked has it from here
            clients.local_process(server.downlink_package(), server.sample_clients())
            for upload in clients.uplink_package():
                server.load(upload)
            torch.set_num_threads(processes)
            took.done(server.get_summary()["server_acc"])


if __name__ == "__main__":
    run_driver(drive)
