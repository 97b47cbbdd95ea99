"""A strategy's own loss in local training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from fedkd.clients.factory import ClientFactory
from fedkd.continual.mixins import extra_outputs
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.local import Local
from fedkd.fusion.local_objective import LocalObjective
from fedkd.fusion.views import Arrays, ClientView, LocalBatch, LocalStep
from fedkd.models.build import build_group_models
from fedkd.plan.checks.requirements import check_requirements
from fedkd.plan.load import parse_plan
from fedkd.training.fast.vectorised import VectorisedExecutor
from fedkd.training.losses import cross_entropy


@dataclass(frozen=True)
class Watching(LocalObjective, Local):
    """Minimises the cross entropy, as if it said nothing, and takes down what it is shown."""

    name: ClassVar[str] = "watching"
    capabilities: ClassVar[Capabilities] = Capabilities(needs={"gradients", "features"})
    seen: list[LocalBatch] = field(default_factory=list)
    guided: list[Arrays] = field(default_factory=list)

    def local_step(self, client: ClientView, guidance: Arrays) -> LocalStep:
        self.guided.append(guidance)

        def loss(batch: LocalBatch) -> torch.Tensor:
            self.seen.append(batch)
            return cross_entropy(batch.logits, batch.labels)

        return loss


@pytest.fixture
def clients_with(digits_scenario):
    """Return a function from a strategy and changed tables to the first two clients."""
    data = digits_scenario["data"] | {"partition": {"samples_per_client": 50}, "transfer": {"size": 0}}
    tables = digits_scenario | {"data": data, "fusion": {"strategy": "local"}}

    def make(strategy, **changes):
        tables_now = {key: value for key, value in (tables | changes).items() if value is not None}
        plan = parse_plan(tables_now)
        plan = plan if strategy is None else replace(plan, strategy=strategy)
        factory = ClientFactory(plan, load_data(plan.scenario))
        clients = [factory.build(index) for index in range(2)]
        for client in clients:
            client.enter(1)
        return clients

    return make


STREAM = {
    "rounds": None,
    "continual": {"learner": "naive", "head": "task", "online": True, "tasks": {"kind": "split", "count": 5}},
}
SETTINGS = {
    "plain": {},
    "stragglers": {"faults": {"stragglers": 0.9}},
    "early stopping": {"training": {"early_stopping": {"validation": 0.3, "patience": 2}, "local_epochs": 3}},
    "accumulated": {"training": {"accumulate": 2, "batch_size": 16}},
    "a learner that looks at labels": {
        "rounds": None,
        "continual": {"learner": "agem", "head": "task", "tasks": {"kind": "split", "count": 5}},
    },
    "one pass": STREAM,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_local_loss_of_cross_entropy_changes_no_bit(setting, clients_with):
    changes, strategy = SETTINGS[setting], Watching()
    (own, _), (plain, _) = clients_with(strategy, **changes), clients_with(None, **changes)
    for round in (1, 2):
        assert own.complete(own.train(round)) == plain.complete(plain.train(round))
        assert own.last_hits == plain.last_hits
    for name, values in plain.weights().items():
        assert np.array_equal(own.weights()[name], values), name
    assert strategy.guided == [{}, {}]
    seen = strategy.seen
    assert len(seen) >= 2
    indices = torch.cat([batch.index for batch in seen])
    assert indices.max() < len(own.data.train_y)
    for batch in seen:
        assert torch.equal(batch.inputs, torch.tensor(own.data.train_x)[batch.index])
        assert torch.equal(batch.labels, torch.tensor(own.data.train_y)[batch.index])
        assert batch.logits.requires_grad and batch.features.shape == (len(batch.labels), 200)


def test_the_local_loss_sees_the_trained_model(clients_with):
    """A loss that asks it anew has the gradient that the logits have."""

    @dataclass(frozen=True)
    class Asking(Watching):
        def local_step(self, client, guidance):
            return lambda batch: cross_entropy(batch.model(batch.inputs), batch.labels)

    (own, _), (plain, _) = clients_with(Asking()), clients_with(None)
    own.complete(own.train(1))
    plain.complete(plain.train(1))
    assert all(np.array_equal(own.weights()[name], values) for name, values in plain.weights().items())


def test_a_local_loss_trains_in_the_loop(clients_with):
    alone, together = clients_with(Watching()), clients_with(Watching())
    jobs = [next(client.train(1)) for client in together]
    VectorisedExecutor(2).run(jobs)
    for one, other in zip(alone, together, strict=True):
        one.complete(one.train(1))
        assert all(np.array_equal(other.weights()[name], values) for name, values in one.weights().items())


@pytest.mark.parametrize("stream", [False, True])
def test_a_frozen_model_does_not_change(stream, clients_with):
    (client, other) = clients_with(Watching(), **(STREAM if stream else {}))
    view, x = client.at(1), torch.tensor(client.data.train_x[:3]).requires_grad_()
    other_weights = other.weights()
    frozen = view.frozen(other_weights)
    expected = torch.tensor(other.predict(client.data.train_x[:3]))
    client.complete(client.train(1))
    torch.testing.assert_close(frozen(x), expected)
    torch.testing.assert_close(frozen.head(frozen.features(x)), expected)
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())
    frozen(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert isinstance(frozen, nn.Module) and client.network().training


def test_an_estimator_has_no_frozen_model(digits_scenario):
    forest = {"clients": [{"model": "random-forest"}], "training": {}, "fusion": {"strategy": "local"}}
    plan = parse_plan(digits_scenario | forest)
    client = ClientFactory(plan, load_data(plan.scenario)).build(0)
    with pytest.raises(TypeError, match='its `needs` must include "gradients"'):
        client.frozen({})


@pytest.mark.parametrize(
    ("learner", "reason"),
    [
        (
            "cumulative",
            "has its own loss in local training, but 'cumulative' trains on samples of earlier",
        ),
        ("supsup", "on the model's weights, but 'supsup' replaces the weights"),
    ],
)
def test_a_local_loss_refuses_unsupported_learners_by_name(learner, reason, digits_scenario):
    data = digits_scenario["data"] | {"partition": {"samples_per_client": 50}}
    tables = digits_scenario | {"fusion": {"strategy": "local"}, "data": data}
    del tables["rounds"]
    tables["continual"] = {"learner": learner, "head": "task", "tasks": {"kind": "split", "count": 5}}
    plan = replace(parse_plan(tables), strategy=Watching())
    data = load_data(plan.scenario)
    models = build_group_models(plan.scenario, data.input_shape, data.outputs + extra_outputs(plan.learner))
    with pytest.raises(UserError, match=reason):
        check_requirements(plan, data, models)
