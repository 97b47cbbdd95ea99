"""Optimiser states, schedules, accumulated batches and early stopping, against plain torch loops."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from stopping import StopInRound
from torch import Tensor

import fedkd
from fedkd.clients.client import Client
from fedkd.clients.factory import ClientFactory
from fedkd.clients.local_samples import count_held_out, keep_apart
from fedkd.data.load import load_data
from fedkd.errors import Interrupted, UserError
from fedkd.plan.load import parse_plan, parse_scenario
from fedkd.training.executor import LoopExecutor
from fedkd.training.job import TrainJob
from fedkd.training.losses import cross_entropy

pytestmark = pytest.mark.usefixtures("no_report")

ALL = 1000
"""More than a client has samples: one batch is the whole shard."""


@pytest.fixture
def tables(digits_scenario) -> dict:
    """Four linear models."""
    return digits_scenario | {
        "clients": [{"model": "mlp", "args": {"hidden": []}}],
        "training": {"optimizer": "sgd", "lr": 0.1, "batch_size": ALL},
    }


def factory_of(tables: dict, **training) -> ClientFactory:
    plan = parse_plan(tables | {"training": tables["training"] | training})
    return ClientFactory(plan, load_data(plan.scenario))


def train(client: Client, round: int) -> float:
    return client.complete(client.train(round))


def step_by_hand(model, optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()


def assert_same_weights(client: Client, model) -> None:
    for name, values in client.weights().items():
        np.testing.assert_allclose(
            values, model.state_dict()[name].numpy(), rtol=2e-4, atol=2e-6, err_msg=name
        )


# The state of optimisers ----------------------------------------------------------------------------------

HAND = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5),
}


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", HAND)
def test_optimiser_state_persists_only_where_it_is_kept(name, kept, tables):
    options = {"optimizer": name, "momentum": 0.0 if name == "adam" else 0.5}
    client = factory_of(tables, **options, optimizer_state="kept" if kept else "fresh").build(0)
    model = deepcopy(client.network())
    x, y = torch.tensor(client.data.train_x), torch.tensor(client.data.train_y)
    optimizer = HAND[name](model.parameters())
    for round in (1, 2, 3):
        train(client, round)
        optimizer = optimizer if kept else HAND[name](model.parameters())
        step_by_hand(model, optimizer, x, y)
        # Distillation in between starts fresh and leaves the state alone.
        remembered = client.state()
        names = [key for key in remembered if key.startswith("optimizer/")]
        assert bool(names) == kept
        targets = np.full((len(client.data.transfer_x), 10), 0.1, dtype=np.float32)
        weights = client.weights()
        client.at(round).distil(targets)
        client.load_weights(weights)
        after = client.state()
        assert all(np.array_equal(after[key], remembered[key]) for key in names)
    assert_same_weights(client, model)


def test_clients_with_a_shared_model_have_separate_optimiser_states(tables):
    tables = tables | {"fusion": {"strategy": "flwr:FedAvg"}}
    together = factory_of(tables, optimizer="adam", optimizer_state="kept")
    alone = factory_of(tables, optimizer="adam", optimizer_state="kept").build(0)
    clients = [together.build(0), together.build(1)]
    weights = alone.weights()
    for round in (1, 2):
        for client in (*clients, alone):
            client.load_weights(weights)
            train(client, round)
            if client is clients[0]:
                kept = client.weights()
        assert all(np.array_equal(kept[name], alone.weights()[name]) for name in weights)
    first, second = (
        {k: v for k, v in client.state().items() if k.startswith("optimizer/exp")} for client in clients
    )
    assert first.keys() == second.keys() and first
    assert not any(np.array_equal(first[name], second[name]) for name in first)


def run(tables: dict, out: Path, **changes) -> bytes:
    fedkd.run(parse_scenario(tables | changes), out=out)
    return (out / "metrics.jsonl").read_bytes()


EVERYTHING = {
    "optimizer": "rmsprop",
    "momentum": 0.5,
    "optimizer_state": "kept",
    "schedule": "exponential",
    "lr": 0.0005,
    "batch_size": 16,
    "accumulate": 2,
    "local_epochs": 3,
    "early_stopping": {"validation": 0.2, "patience": 1},
}


@pytest.mark.parametrize("kind", ["knfu", "flwr:FedAvg", "exssnet", "trgp", "joint"])
def test_a_run_stopped_in_every_round_gives_the_same_bytes(kind, digits_scenario, tmp_path):
    tables = digits_scenario | {"training": EVERYTHING, "rounds": 4, "clients_per_round": 3}
    if kind.startswith("flwr"):
        tables |= {"fusion": {"strategy": kind}}
    elif kind != "knfu":
        del tables["rounds"]
        tables["fusion"] = {"strategy": "knfu", "ce_weight": 0.5}
        tables["data"] = tables["data"] | {"transfer": {"size": 20}}
        tables["continual"] = {"learner": kind, "rounds_per_task": 2, "tasks": {"count": 2}}
    unbroken = run(tables, tmp_path / "unbroken")
    folder = tmp_path / "broken"
    with pytest.raises(Interrupted):
        fedkd.run(parse_scenario(tables), out=folder, observers=[StopInRound()])
    for _ in range(2):
        with pytest.raises(Interrupted):
            fedkd.resume(folder, observers=[StopInRound()])
    fedkd.resume(folder)
    assert (folder / "metrics.jsonl").read_bytes() == unbroken
    if kind == "knfu":
        fresh = run(tables | {"training": EVERYTHING | {"optimizer_state": "fresh"}}, tmp_path / "fresh")
        assert fresh != unbroken


# Schedules and accumulated batches ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, [0.1] * 5),
        ({"schedule": "cosine"}, [0.05 * (1 + math.cos(math.pi * r / 5)) for r in range(5)]),
        ({"schedule": "step", "lr_step_rounds": 2}, [0.1, 0.1, 0.01, 0.01, 0.001]),
        ({"schedule": "step", "lr_step_rounds": 1, "lr_decay": 0.5}, [0.1 * 0.5**r for r in range(5)]),
        ({"schedule": "exponential"}, [0.1 * 0.99**r for r in range(5)]),
        ({"schedule": "exponential", "lr_decay": 0.9}, [0.1 * 0.9**r for r in range(5)]),
    ],
)
def test_the_learning_rate_follows_the_schedule_over_rounds(options, rates, tables):
    client = factory_of(tables | {"rounds": 5}, **options).build(0)
    model = deepcopy(client.network())
    x, y = torch.tensor(client.data.train_x), torch.tensor(client.data.train_y)
    for round, rate in enumerate(rates, start=1):
        train(client, round)
        step_by_hand(model, torch.optim.SGD(model.parameters(), lr=rate), x, y)
    assert_same_weights(client, model)


def test_accumulated_batches_equal_one_large_batch(tables):
    whole, parts = factory_of(tables).build(0), factory_of(tables, batch_size=7, accumulate=ALL).build(0)
    for client in (whole, parts):
        train(client, 1)
        targets = np.random.default_rng(1).dirichlet(np.ones(10), len(client.data.transfer_x))
        client.at(1).distil(targets.astype(np.float32))
        assert client.last_fit.steps == 1
    for name, values in parts.weights().items():
        np.testing.assert_allclose(values, whole.weights()[name], rtol=1e-4, atol=1e-6)


# Early stopping -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "share", "number"), [(80, 0.1, 8), (15, 0.1, 2), (14, 0.1, 0), (2, 0.9, 0)]
)
def test_fewer_than_two_samples_give_no_validation_set(samples, share, number):
    assert count_held_out(samples, share) == number
    own = keep_apart(np.zeros(samples, dtype=np.int64), share, seed=1, client=0)
    assert len(own.kept_apart) == number
    assert sorted([*own.trained_on, *own.kept_apart]) == list(range(samples))


def test_the_validation_set_is_stratified_and_drawn_once():
    labels = np.repeat([0, 1, 2], [50, 40, 10])
    own = keep_apart(labels, 0.2, seed=1, client=0)
    assert np.bincount(labels[own.kept_apart]).tolist() == [10, 8, 2]
    for same, options in (
        (True, {"seed": 1, "client": 0}),
        (False, {"seed": 2, "client": 0}),
        (False, {"seed": 1, "client": 1}),
        (False, {"seed": 1, "client": 0, "task": 0}),
    ):
        again = keep_apart(labels, 0.2, **options).kept_apart
        assert np.array_equal(again, own.kept_apart) == same


def test_early_stopping_ends_with_the_lowest_validation_loss(tables):
    options = {"lr": 1.0, "local_epochs": 30, "early_stopping": {"validation": 0.25, "patience": 2}}
    client = factory_of(tables, **options).build(0)
    model = deepcopy(client.network())
    own = client.samples.split()
    x, y = torch.tensor(client.data.train_x), torch.tensor(client.data.train_y)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def loss() -> float:
        with torch.no_grad():
            return float(cross_entropy(model(x[own.kept_apart]), y[own.kept_apart]))

    best, weights, waited, steps = loss(), deepcopy(model.state_dict()), 0, 0
    while waited < 2 and steps < 30:
        step_by_hand(model, optimizer, x[own.trained_on], y[own.trained_on])
        steps += 1
        if loss() < best:
            best, weights, waited = loss(), deepcopy(model.state_dict()), 0
        else:
            waited += 1
    assert 2 < steps < 30
    train(client, 1)
    assert client.last_fit.steps == steps
    model.load_state_dict(weights)
    assert_same_weights(client, model)
    assert client.num_train_samples == len(y) == len(own.trained_on) + len(own.kept_apart)


class Spy(LoopExecutor):
    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[TrainJob] = []

    def run(self, jobs):
        self.jobs += jobs
        return super().run(jobs)


def rows_of(*arrays: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for array in arrays for row in array}


@pytest.mark.parametrize("learner", [None, "er", "joint"])
def test_validation_samples_are_never_trained_on(learner, tables):
    options = {"batch_size": 8, "local_epochs": 2, "early_stopping": {"validation": 0.3, "patience": 5}}
    tables = tables | {"fusion": {"strategy": "knfu", "ce_weight": 0.5}}
    if learner:
        del tables["rounds"]
        tables["data"] = tables["data"] | {"transfer": {"size": 20}}
        tables["continual"] = {"learner": learner, "head": "class", "tasks": {"count": 2}}
    client = factory_of(tables, **options).build(1)
    client.executor = spy = Spy()
    for round in (1, 2) if learner else (1,):
        client.enter(round)
        train(client, round)
        classes = client.data.classes
        targets = np.full((len(client.data.transfer_x), classes), 1 / classes, dtype=np.float32)
        client.at(round).distil(targets)
        client.end_task()
    apart = rows_of(*(job.early_stopping.arrays[0] for job in spy.jobs if job.early_stopping))
    trained = rows_of(*(job.arrays[0] for job in spy.jobs if job.early_stopping))
    private = rows_of(*(job.arrays[2] for job in spy.jobs if not job.early_stopping))
    assert apart and trained and private and not apart & (trained | private)
    datas = [client.samples.tasks[task] for task in range(2)] if learner else [client.data]
    assert apart | trained == rows_of(*(torch.tensor(data.train_x) for data in datas))
    if learner == "er":
        remembered = rows_of(client.stream.learning.context.memory["episodes/samples"])
        assert remembered and remembered <= trained


# What is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"schedule": "cosine", "lr_decay": 0.5}, "lr_decay", "training.schedule is 'cosine'"),
        ({"schedule": "step"}, "lr_step_rounds", "needs the rounds between two drops"),
        ({"schedule": "step", "lr_step_rounds": 0}, "lr_step_rounds", "must be ≥ 1"),
        ({"schedule": "exponential", "lr_decay": 1.5}, "lr_decay", "must be ≤ 1"),
        ({"early_stopping": {"validation": 0.0}}, "early_stopping.validation", "must be > 0"),
        ({"early_stopping": {"patience": 0}}, "early_stopping.patience", "must be ≥ 1"),
        ({"accumulate": 0}, "accumulate", "must be ≥ 1"),
    ],
)
def test_options_without_a_use_are_refused(options, key, message, digits_scenario):
    digits_scenario["training"] = {"batch_size": 20} | options
    with pytest.raises(UserError, match=message) as caught:
        parse_scenario(digits_scenario)
    assert caught.value.key == f"training.{key}"


def test_scaffold_refuses_early_stopping(tables):
    tables["fusion"] = {"strategy": "scaffold"}
    tables["training"]["early_stopping"] = {}
    with pytest.raises(UserError, match="returns to earlier weights") as caught:
        fedkd.run(parse_scenario(tables))
    assert caught.value.key == "training.early_stopping"


@pytest.mark.parametrize("strategy", ["local", "fd", "fedproto", "scaffold", "flwr:FedAvg"])
def test_strategies_without_transfer_samples_run_without_a_transfer_set(strategy, tables, tmp_path):
    tables["data"] = tables["data"] | {"transfer": {"size": 0}}
    assert run(tables, tmp_path / "run", fusion={"strategy": strategy})


def test_strategies_that_need_a_transfer_set_are_refused_without_one(tables):
    tables["data"] = tables["data"] | {"transfer": {"size": 0}}
    with pytest.raises(UserError, match=r"'knfu'; only local, .*fd.*scaffold.* and Flower's") as caught:
        parse_scenario(tables)
    assert caught.value.key == "data.transfer.size"
