"""One client over a stream of tasks whose learner trains on several at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedkd.clients.factory import ClientFactory
from fedkd.clients.stream_client import StreamClient
from fedkd.data.load import load_data
from fedkd.plan.load import parse_plan
from fedkd.training.job import TrainJob


@pytest.fixture
def joint_client(digits_scenario):
    """Return a function from changes of the tables to a client in the second of three tasks."""

    def make(**changes: Any) -> StreamClient:
        tasks = {"kind": "split", "count": 3, "classes_per_task": 3}
        tables = digits_scenario | {
            "clients": [{"model": "mlp", "args": {"hidden": [16]}}],
            "fusion": {"strategy": "flwr:FedAvg"},
            "continual": {"learner": "joint", "tasks": tasks, "rounds_per_task": 1},
        }
        del tables["rounds"]
        data = {
            "clients": 2,
            "partition": {"scheme": "iid", "samples_per_client": 50},
            "transfer": {"size": 0},
        }
        plan = parse_plan(tables | {"data": digits_scenario["data"] | data} | changes)
        client = ClientFactory(plan, load_data(plan.scenario)).build(0)
        assert isinstance(client, StreamClient)
        client.enter(2)
        return client

    return make


def job_of(client: StreamClient) -> TrainJob:
    """Return what the client's next training hands to an executor."""
    return client.train(2).send(None)


def test_joint_keeps_the_pull_of_fedprox(joint_client):
    def moved(mu: float) -> float:
        client = joint_client()
        start = client.weights()
        client.complete(client.train(2, proximal_mu=mu))
        return sum(float(np.square(values - start[name]).sum()) for name, values in client.weights().items())

    assert moved(100.0) < 0.1 * moved(0.0)


def test_a_straggler_trains_on_its_share_of_every_task(joint_client):
    whole = job_of(joint_client())
    slow = job_of(joint_client(faults={"stragglers": 1.0, "straggler_work": 0.5}, seed=7))
    assert whole.epochs >= slow.epochs == 1
    of_task, slow_of_task = whole.arrays[2].tolist(), slow.arrays[2].tolist()
    assert sorted(set(of_task)) == sorted(set(slow_of_task)) == [0, 1]
    for task in (0, 1):
        assert slow_of_task.count(task) == of_task.count(task) // 2
    rows = {x.numpy().tobytes() for x in whole.arrays[0]}
    assert {x.numpy().tobytes() for x in slow.arrays[0]} < rows
