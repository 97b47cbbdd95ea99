"""Samples of a strategy are trained on along with private ones."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from fedkd.clients.factory import ClientFactory
from fedkd.continual.baselines.baselines import Naive
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.fusion.local import Local
from fedkd.fusion.local_objective import LocalObjective
from fedkd.fusion.views import ClientView, Rehearsal
from fedkd.models.build import build_group_models
from fedkd.plan.checks.requirements import check_requirements
from fedkd.plan.load import parse_plan
from fedkd.randomness import torch_generator
from fedkd.training.losses import cross_entropy, logits_mse

BATCH = 20


@dataclass(frozen=True)
class Rehearsing(LocalObjective, Local):
    """Exchanges nothing, and has clients bring made-up samples to logits of zero."""

    count: int = 0
    name: ClassVar[str] = "rehearsing"

    def rehearsal(self, client: ClientView) -> Rehearsal | None:
        if not self.count:
            return None
        return Rehearsal(made_up(self.count), np.zeros((self.count, 10), np.float32), logits_mse)


def made_up(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 1, 8, 8)).astype(np.float32)


@pytest.fixture
def stream(digits_scenario) -> dict:
    """The tables of a stream of two classes a task."""
    data = digits_scenario["data"] | {"partition": {"samples_per_client": 50}, "transfer": {"size": 0}}
    tables = digits_scenario | {"data": data, "fusion": {"strategy": "local"}}
    del tables["rounds"]
    return tables


@pytest.fixture
def client_with(stream):
    """Return a function from a number of made-up samples to a linear client under `naive`."""

    def make(count: int, **training):
        tables = stream | {
            "clients": [{"model": "mlp", "args": {"hidden": []}}],
            "training": {"optimizer": "sgd", "lr": 0.1, "batch_size": BATCH, **training},
            "continual": {"learner": "naive", "head": "class", "tasks": {"count": 5}},
        }
        plan = replace(parse_plan(tables), strategy=Rehearsing(count=count))
        client = ClientFactory(plan, load_data(plan.scenario)).build(0)
        client.enter(1)
        return client

    return make


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_private_batch_has_a_batch_of_rehearsed_samples(accumulate, client_with, digits_scenario):
    client, count = client_with(3 * BATCH // 2, accumulate=accumulate), 3 * BATCH // 2
    model = deepcopy(client.network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.tensor(client.data.train_x), torch.tensor(client.data.train_y)
    seed = digits_scenario["seed"]
    private = torch.randperm(len(x), generator=torch_generator(seed, "train-batches", client=0, round=1))
    other = torch_generator(seed, "rehearsal-batches", client=0, round=1)
    rehearsed = torch.cat([torch.randperm(count, generator=other) for _ in range(9)]).split(BATCH)
    batches = private.split(BATCH)
    for first in range(0, len(batches), accumulate):
        step = range(first, min(first + accumulate, len(batches)))
        seen = sum(len(batches[number]) for number in step)
        optimizer.zero_grad()
        for number in step:
            extra = torch.tensor(made_up(count))[rehearsed[number]]
            own = batches[number]
            value = cross_entropy(model(x[own]), y[own]) + model(extra).square().mean()
            (value * len(own) / seen).backward()
        optimizer.step()
    client.complete(client.train(1))
    for name, values in client.weights().items():
        np.testing.assert_allclose(values, model.state_dict()[name].numpy(), atol=2e-6, err_msg=name)


def test_training_without_rehearsed_samples_is_unchanged(client_with):
    plain, rehearsing = client_with(0), client_with(BATCH)
    one, other = (client.complete(client.train(1)) for client in (plain, rehearsing))
    rehearsing.load_weights(plain.weights())
    again = client_with(0)
    assert again.complete(again.train(1)) == one != other
    for name, values in again.weights().items():
        np.testing.assert_array_equal(values, plain.weights()[name])


def test_rehearsal_refuses_learners_that_train_on_old_tasks(stream):
    tables = stream | {"continual": {"learner": "joint", "tasks": {"count": 5}}}
    plan = replace(parse_plan(tables), strategy=Rehearsing(count=1))
    data = load_data(plan.scenario)
    models = build_group_models(plan.scenario, data.input_shape, data.outputs)
    with pytest.raises(UserError, match="'local' distils transfer samples in local training, but 'joint'"):
        check_requirements(plan, data, models)
    check_requirements(replace(plan, learner=Naive()), data, models)
