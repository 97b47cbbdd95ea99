"""Flower as its users write it: single images transformed in a DataLoader, FedAvg, its simulation on Ray."""

from __future__ import annotations

import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import logging
import warnings
from pathlib import Path

import torch
from common import BATCH, LR, MEAN, STD, Images, Rounds, as_tensors, hits, lenet, load_images, run_driver
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

FOLDER = "FEDKD_BENCH_FOLDER"
TRANSFORM = Compose([ToTensor(), Normalize((MEAN,), (STD,))])

client = ClientApp()


class Shard(Dataset):
    """One client's images, transformed when they are asked for."""

    def __init__(self, images: Images, number: int) -> None:
        self._x, self._y = images.x[images.of(number)], images.y[images.of(number)]

    def __len__(self) -> int:
        return len(self._y)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
        return TRANSFORM(self._x[place]), int(self._y[place])


def images() -> Images:
    """Return the data, read once in every process."""
    return load_images(os.environ[FOLDER])


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train for an epoch from the weights that come."""
    torch.set_num_threads(1)
    model, loss = lenet(), nn.CrossEntropyLoss()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    shard = Shard(images(), int(context.node_config["partition-id"]))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    for x, y in DataLoader(shard, batch_size=BATCH, shuffle=True):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(shard)}),
    }
    return Message(content=RecordDict(content), reply_to=message)


class Strict(FedAvg):
    """FedAvg that is not content with fewer clients."""

    def aggregate_train(self, server_round, replies):
        """Average what all clients sent."""
        found = list(replies)
        for reply in found:
            if reply.has_error():
                raise RuntimeError(f"a client failed: {reply.error.reason}")
        return super().aggregate_train(server_round, found)


def drive(folder: Path, rounds: int, processes: int, took: Rounds) -> None:
    """Run rounds of Flower's FedAvg, whose model the server evaluates."""
    os.environ[FOLDER] = str(folder)
    own, model = images(), lenet()
    test = as_tensors(own.test_x, own.test_y)

    def evaluate(round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        accuracy = hits(model, *test) / len(own.test_y)
        if round > 0:
            took.done(accuracy)
        return MetricRecord({"accuracy": accuracy})

    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = Strict(
            fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=own.clients, min_evaluate_nodes=0
        )
        strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=rounds, evaluate_fn=evaluate)

    warnings.simplefilter("ignore")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=own.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": processes, "log_to_driver": False, "include_dashboard": False},
        },
    )


if __name__ == "__main__":
    run_driver(drive)
