"""Auxiliary networks are created, trained, saved, evaluated and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch.nn.functional as F
from numpy.testing import assert_array_equal
from torch import nn

import fedkd
from fedkd.clients.costs.model_memory import build_checked_models, estimate_client_bytes
from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.fusion.auxiliary import AuxNetwork, AuxNetworks
from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.local import Local
from fedkd.fusion.local_objective import LocalObjective
from fedkd.plan.load import parse_plan, parse_scenario
from fedkd.training.weights import weights_of

pytestmark = pytest.mark.usefixtures("no_report")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "strategies.md"


@dataclass(frozen=True)
class Beside(LocalObjective, AuxNetworks, Local):
    """Trains a small model, a copy like the own one and a projection of its own, and answers by the first."""

    name: ClassVar[str] = "beside"
    capabilities: ClassVar[Capabilities] = Capabilities(needs={"gradients", "features"})
    shared_model: str = "mlp"
    shared_args: Any = None
    projection: Callable[..., Any] = lambda make: nn.Linear(make.width("small"), make.width())

    def __post_init__(self) -> None:
        object.__setattr__(self, "shared_args", self.shared_args or {"hidden": [6]})

    def aux_networks(self):
        return {
            "small": AuxNetwork(lambda make: make.shared_model(with_features=True), lr=0.003),
            "copy": AuxNetwork(lambda make: make.like_own(), trained=False),
            "projection": AuxNetwork(self.projection, start="client"),
        }

    def local_step(self, client, guidance):
        small, projection = client.network("small"), client.network("projection")

        def loss(batch):
            features = projection(small.features(batch.inputs))
            both = F.cross_entropy(batch.logits, batch.labels) + F.cross_entropy(
                small(batch.inputs), batch.labels
            )
            return both + (features - batch.features.detach()).square().mean()

        return loss

    def predictor(self, client):
        return client.network("small")


def clients_of(tables: dict[str, Any], strategy: Local = Beside(), count: int = 2) -> list[Any]:
    plan = replace(parse_plan(tables), strategy=strategy)
    factory = ClientFactory(plan, load_data(plan.scenario))
    return [factory.build(index) for index in range(count)]


def equal(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = weights_of(one), weights_of(other)
    return all(np.array_equal(mine[name], theirs[name]) for name in mine)


def test_shared_models_begin_alike_and_private_ones_do_not(digits_scenario):
    first, second = clients_of(digits_scenario)
    assert equal(first.network("small"), second.network("small"))
    assert equal(first.network("copy"), second.network("copy"))
    assert not equal(first.network("projection"), second.network("projection"))
    assert not equal(first.network(), second.network())
    assert first.network("projection").weight.shape == (200, 6)
    with pytest.raises(KeyError, match="a network 'big'; clients have model, small, copy, projection"):
        first.network("big")


def test_auxiliary_networks_are_trained_saved_and_resumed(digits_scenario):
    tables = digits_scenario | {"training": digits_scenario["training"] | {"optimizer_state": "kept"}}
    client, other = clients_of(tables)[0], clients_of(tables)[0]
    begun = {name: weights_of(client.network(name)) for name in ("small", "copy", "projection")}
    client.complete(client.train(1))
    for name, changed in {"small": True, "copy": False, "projection": True}.items():
        now = weights_of(client.network(name))
        assert all((not np.array_equal(now[key], begun[name][key])) is changed for key in now)
    saved = client.state()
    other.restore({name: values.copy() for name, values in saved.items()})
    assert other.state().keys() == saved.keys()
    for both in (client, other):
        both.complete(both.train(2))
    for name, values in client.state().items():
        assert_array_equal(other.state()[name], values)


def test_training_accuracy_is_measured_on_the_answering_network(digits_scenario):
    """FedMRL's head alone, on the own features, says nothing: it has never been trained on them."""
    fusion = {"strategy": "fedmrl", "shared_args": {"hidden": [32]}}
    longer = {"training": digits_scenario["training"] | {"local_epochs": 15}}
    plan = parse_plan(digits_scenario | {"fusion": fusion} | longer)
    client = ClientFactory(plan, load_data(plan.scenario)).build(0)
    client.complete(client.train(1))
    x, y = client.data.train_x, client.data.train_y
    assert client.last_hits.accuracy > 0.95 > (client.predict(x).argmax(axis=1) == y).mean()
    assert (client.evaluator.answer(x).argmax(axis=1) == y).mean() > 0.95


def test_evaluations_ask_the_auxiliary_network(digits_scenario):
    client = clients_of(digits_scenario)[0]
    client.complete(client.train(1))
    x, view = client.data.global_x, client.at(1)
    assert (view.round, view.rounds) == (1, 2)
    frozen = view.frozen(view.weights("small"), "small")
    assert_array_equal(client.evaluator.answer(x), client.trainer.logits_of(frozen, x))
    assert not np.array_equal(client.evaluator.answer(x), client.predict(x))


def test_auxiliary_networks_count_as_memory(digits_scenario):
    plan = parse_plan(digits_scenario)
    data = load_data(plan.scenario)
    models = build_checked_models(plan, data)
    with_more = replace(plan, strategy=Beside())
    more = estimate_client_bytes(with_more, data, models) - estimate_client_bytes(plan, data, models)
    sizes = [
        values.nbytes
        for name in ("small", "copy", "projection")
        for values in weights_of(clients_of(digits_scenario)[0].network(name)).values()
    ]
    assert more == sum(sizes)


@pytest.mark.parametrize(
    ("strategy", "key", "told"),
    [
        (Beside(shared_model="nope"), "fusion.shared_model", "no model named 'nope'"),
        (Beside(shared_args={"deep": 1}), "fusion.shared_args", "deep"),
        (Beside(projection=lambda make: 3), "fusion.strategy", "made a int as 'projection'"),
        (Beside(projection=lambda make: 1 / 0), "fusion.strategy", "raised ZeroDivisionError"),
    ],
)
def test_impossible_auxiliaries_are_refused_before_a_run(digits_scenario, strategy, key, told):
    plan = replace(parse_plan(digits_scenario), strategy=strategy)
    with pytest.raises(UserError, match=told) as caught:
        build_checked_models(plan, load_data(plan.scenario))
    assert caught.value.key == key


def test_auxiliary_networks_refuse_a_stream(digits_scenario):
    tasks = {"kind": "split", "count": 2}
    tables = digits_scenario | {"continual": {"learner": "naive", "rounds_per_task": 1, "tasks": tasks}}
    tables.pop("rounds")
    plan = replace(parse_plan(tables), strategy=Beside())
    with pytest.raises(UserError, match="which learners do not support"):
        build_checked_models(plan, load_data(plan.scenario))


def test_the_example_on_the_strategies_page_runs(digits_scenario, tmp_path):
    text = PAGE.read_text(encoding="utf-8").partition("### A strategy of your own with a second network")[2]
    (tmp_path / "mine.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    own = {"plugin_path": [str(tmp_path)], "fusion": {"strategy": "mine:Shadow"}, "rounds": 1}
    result = fedkd.run(parse_scenario(digits_scenario | own), out=tmp_path / "run")
    gains = [row["value"] for row in result.metrics() if row["metric"] == "fusion_gain"]
    assert gains and not any(gains), "what is measured is trained alone"
