"""Models that do not fit into memory are refused before the memory is gone."""

from __future__ import annotations

import pytest
import torch

from fedkd.clients.memory import checked_models, copies_in_training
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.models.allowance import Allowance
from fedkd.plan.load import parse_plan


@pytest.mark.parametrize(
    ("training", "copies"),
    [({"optimizer": "adam"}, 4), ({"optimizer": "sgd"}, 2), ({"optimizer": "sgd", "momentum": 0.9}, 3)],
)
def test_training_takes_weights_gradients_and_moments(training, copies, digits_scenario):
    plan = parse_plan(digits_scenario | {"training": training})
    assert copies_in_training(plan) == copies


def test_an_allowance_counts_what_is_asked_for_before_it_is_given():
    with Allowance(4000, "for a reason"):
        torch.zeros(500)
        torch.randn(20, 20).add_(1).clone()  # follows from what is there
        with pytest.raises(UserError, match=r"clients.model: asks for .* for a reason"):
            torch.empty(10**6, 10**6)


@pytest.mark.parametrize(("memory", "key"), [(300_000, "clients.0.model"), (1_000_000, "clients")])
def test_models_larger_than_the_memory_are_refused(memory, key, digits_scenario, monkeypatch):
    wide = {"model": "mlp", "args": {"hidden": [500]}}  # 150 kB, 600 kB while it is trained
    plan = parse_plan(digits_scenario | {"clients": [wide]})
    data = load_data(plan.scenario)
    assert len(checked_models(plan, data)) == 1
    monkeypatch.setattr("fedkd.clients.memory.machine_memory", lambda: memory)
    with pytest.raises(UserError) as caught:
        checked_models(plan, data)
    assert caught.value.key == key


def test_clients_that_work_in_one_model_need_one(digits_scenario, monkeypatch):
    wide = {"model": "mlp", "args": {"hidden": [500]}}
    tables = digits_scenario | {"clients": [wide], "fusion": {"strategy": "flwr:FedAvg"}}
    plan = parse_plan(tables)
    monkeypatch.setattr("fedkd.clients.memory.machine_memory", lambda: 1_000_000)
    assert len(checked_models(plan, load_data(plan.scenario))) == 1
