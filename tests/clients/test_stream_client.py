"""One client over a stream of tasks whose learner trains on several at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd.clients.client import Client
from fedkd.clients.factory import ClientFactory
from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Learner
from fedkd.continual.mixins import TaskInference
from fedkd.continual.task_model import TaskModel
from fedkd.continual.traits import needs_boundaries
from fedkd.data.load import load_data
from fedkd.plan.load import parse_plan
from fedkd.training.job import TrainJob


@pytest.fixture
def joint_client(digits_scenario):
    """Return a function from changes of the tables to a client in the second of three tasks."""

    def make(**changes: Any) -> Client:
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
        client.enter(2)
        return client

    return make


def job_of(client: Client) -> TrainJob:
    """Return what the client's next training hands to an executor."""
    return client.train(2).send(None)


def test_joint_training_keeps_the_proximal_term(joint_client):
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


@pytest.fixture
def online_client(joint_client):
    """Return a function from a learner's table to a client of an online stream of three tasks."""

    def make(learner: str, **stream: Any) -> Client:
        tasks = {"kind": "split", "count": 3, "classes_per_task": 3} | stream
        table = {"learner": learner, "head": "class", "rounds_per_task": 3, "online": True, "tasks": tasks}
        return joint_client(continual=table, fusion={"strategy": "local"})

    return make


def samples_of(job: TrainJob, count: int | None = None) -> list[bytes]:
    return [x.numpy().tobytes() for x in job.arrays[0][:count]]


@pytest.mark.parametrize("learner", ["naive", "icarl"])
def test_online_rounds_divide_the_samples_of_a_task(learner, online_client):
    client = online_client(learner)
    whole = [x.tobytes() for x in client.data.train_x]
    seen: list[bytes] = []
    for round in (1, 2, 3):
        client.enter(round)
        job = client.train(round).send(None)
        assert abs(3 * len(job.arrays[0]) - len(whole)) < 3 and job.epochs == 1
        seen += samples_of(job)
    assert sorted(seen) == sorted(whole)


def test_online_exemplars_may_be_trained_on_again(online_client):
    client = online_client("icarl")
    client.enter(4)
    job = client.train(4).send(None)
    of_task = job.arrays[2].tolist()
    learning = client.stream.learning
    assert of_task.count(0) == len(learning.learner.batch(learning.context).replayed.labels) > 0
    assert abs(3 * of_task.count(1) - len(client.data.train_y)) < 3


def test_a_blurry_task_includes_samples_of_other_classes(online_client):
    client = online_client("naive", blur=0.25)
    of_task = client.data.train_y // 3
    assert set(of_task.tolist()) == {0, 1, 2} and 0.7 < np.mean(of_task == 0) < 0.8
    assert set((client.data.test_y // 3).tolist()) == {0}


@pytest.mark.parametrize(
    "learner", [{"learner": "der++"}, {"learner": "naive"}, {"learner": "supsup", "boundaries": "unknown"}]
)
def test_task_boundaries_are_hidden_from_learners_that_need_none(learner, joint_client):
    tasks = {"kind": "split", "count": 3, "classes_per_task": 3, "boundaries": False}
    table = learner | {"head": "class", "tasks": tasks}
    client = joint_client(continual=table, fusion={"strategy": "local"})
    assert not needs_boundaries(client.stream.learning.learner)


def test_a_strategy_must_declare_its_use_of_masks(joint_client):
    tasks = {"kind": "split", "count": 3, "classes_per_task": 3}
    client = joint_client(continual={"learner": "supsup", "tasks": tasks}, fusion={"strategy": "local"})
    with pytest.raises(TypeError, match="'local' uses masks, so its `needs` must include \"masks\""):
        client.supermask()


# Answers without the task -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Closing(Learner):
    """Train like `naive`; close every output that is not the task's."""

    name: ClassVar[str] = "closing"

    def predict(self, context: LearnerContext, model: TaskModel, x: Tensor) -> Tensor:
        outputs = model.outputs(x)
        closed = torch.ones(outputs.shape[1], dtype=torch.bool)
        closed[model.units] = False
        return outputs.masked_fill(closed, -torch.inf)


@dataclass(frozen=True)
class Inferring(TaskInference, Closing):
    """Answer without the task by an inference of its own: always the first class."""

    name: ClassVar[str] = "inferring"

    def predict_without_task(self, context, model, x):
        return -torch.arange(9.0).expand(len(x), -1), None


@pytest.mark.parametrize("learner", [Closing(), Inferring()], ids=lambda learner: learner.name)
def test_class_incremental_evaluation_hides_the_task(learner, joint_client):
    tasks = {"kind": "split", "count": 3, "classes_per_task": 3}
    table = {"learner": "naive", "rounds_per_task": 1, "tasks": tasks}
    client = joint_client(continual=table, fusion={"strategy": "local"})
    client.stream.learning.learner = learner
    given, unknown = client.stream.tests.measure([0, 1])[0][:, 0, :2]
    tests = [client.samples.tasks.tests(task)[0] for task in (0, 1)]
    for task, (x, y) in enumerate(tests):
        own = client.network()(torch.from_numpy(x))[:, 3 * task : 3 * task + 3].argmax(dim=1).numpy()
        assert given[task] == np.mean(own == y) > 0
    # The second task is the present one, so its model answers, whatever the task of a sample.
    first = {"closing": 0.0, "inferring": np.mean(tests[0][1] == 0)}[learner.name]
    second = {"closing": given[1], "inferring": 0.0}[learner.name]
    assert unknown.tolist() == [first, second]
