"""Strategies that evaluate another network than the client's model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

from fedkd.clients.client import Client
from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.fusion.auxiliary import AuxNetworks
from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.local import Local
from fedkd.fusion.registry import STRATEGIES, load_strategy_class
from fedkd.fusion.views import ClientView
from fedkd.plan.checks.requirements import check_requirements
from fedkd.plan.load import parse_plan


class Answers(nn.Module):
    """What is measured: the logits of a network, moved."""

    def __init__(self, network: nn.Module, moved: torch.Tensor) -> None:
        super().__init__()
        self.network = network
        self.moved = moved

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.network.training
        return self.network(x) + self.moved


@dataclass(frozen=True)
class Moved(AuxNetworks, Local):
    """Answers class 3, whatever the client's model says."""

    name: ClassVar[str] = "moved"
    capabilities: ClassVar[Capabilities] = Capabilities(needs={"gradients"})
    made: Callable[[nn.Module], Any] = lambda network: Answers(network, 1e6 * torch.eye(10)[3])

    def predictor(self, client: ClientView) -> Any:
        return self.made(client.network())


def client_with(tables, strategy: Local) -> Client:
    plan = replace(parse_plan(tables), strategy=strategy)
    client = ClientFactory(plan, load_data(plan.scenario)).build(0)
    client.complete(client.train(1))
    return client


def test_the_predictor_gives_accuracies_and_the_model_gives_knowledge(digits_scenario):
    client = client_with(digits_scenario, Moved())
    x, y = client.data.global_x, client.data.global_y
    assert client.network().training
    assert_array_equal(client.evaluator.evaluate("global").correct, y == 3)
    assert_array_equal(client.evaluator.evaluate("local").correct, client.data.test_y == 3)
    assert client.network().training, "a network is put back in the mode it was in"
    assert len(np.unique(client.predict(x).argmax(axis=1))) > 1
    assert client.evaluator.evaluate("global").loss > 1e5


def test_the_model_answers_without_a_predictor(digits_scenario):
    client = client_with(digits_scenario, Moved(made=lambda network: None))
    x = client.data.global_x
    assert_array_equal(client.evaluator.answer(x), client.predict(x))


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda network: 3, "returned a int; must be a torch.nn.Module, or None"),
        (lambda network: network.body, r"returned \[359, 200\] logits; must be \[359, 10\]"),
    ],
)
def test_wrong_predictors_are_refused(digits_scenario, made, told):
    client = client_with(digits_scenario, Moved(made=made))
    with pytest.raises(TypeError, match=told):
        client.evaluator.evaluate("global")


def test_predictors_refuse_a_stream(digits_scenario):
    tasks = {"kind": "split", "count": 2}
    tables = digits_scenario | {"continual": {"learner": "naive", "rounds_per_task": 1, "tasks": tasks}}
    tables.pop("rounds", None)
    plan = parse_plan(tables)
    with pytest.raises(UserError, match="evaluates another model than the client's"):
        model = ClientFactory(plan, data := load_data(plan.scenario)).build(0).network()
        check_requirements(replace(plan, strategy=Moved()), data, [model] * len(plan.scenario.clients))


def test_predictors_need_networks(monkeypatch):
    @dataclass(frozen=True)
    class Elsewhere(AuxNetworks, Local):
        name: ClassVar[str] = "elsewhere"
        predictor = Moved.predictor

    monkeypatch.setattr(STRATEGIES, "load", lambda name, search=(): Elsewhere)
    with pytest.raises(UserError, match='so it `needs` clients of "gradients"'):
        load_strategy_class("elsewhere")


def test_impossible_eval_models_and_trials_are_refused_before_a_run(monkeypatch):
    @dataclass(frozen=True)
    class Nameless(AuxNetworks, Local):
        """Names two models and has none."""

        eval_models: ClassVar[tuple[str, ...]] = ("one", "other")
        capabilities: ClassVar[Capabilities] = replace(Local.capabilities, needs={"gradients"})

    @dataclass(frozen=True)
    class Tries(Local):
        """Would have forests try guidance out."""

        capabilities: ClassVar[Capabilities] = replace(Local.capabilities, trials=2)

    for cls, told in ((Nameless, "defines `eval_model`"), (Tries, "try guidance, so it `needs`")):
        monkeypatch.setattr(STRATEGIES, "load", lambda name, search=(), cls=cls: cls)
        with pytest.raises(UserError, match=f"'elsewhere' .*{told}"):
            load_strategy_class("elsewhere")
