"""Models that exceed the memory are refused before allocation."""

from __future__ import annotations

import pytest
import torch

from fedkd.clients.costs.model_memory import (
    _check_fusion,
    build_checked_models,
    copies_in_training,
    estimate_client_bytes,
    estimate_fusion_bytes,
    max_resident_clients,
)
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.models.fast.kernel_mode import Allowance
from fedkd.plan.load import parse_plan


@pytest.mark.parametrize(
    ("training", "copies"),
    [({"optimizer": "adam"}, 4), ({"optimizer": "sgd"}, 2), ({"optimizer": "sgd", "momentum": 0.9}, 3)],
)
def test_training_memory_counts_weights_gradients_and_moments(training, copies, digits_scenario):
    plan = parse_plan(digits_scenario | {"training": training})
    assert copies_in_training(plan) == copies


def test_an_allowance_counts_a_request_before_allocation():
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
    assert len(build_checked_models(plan, data)) == 1
    monkeypatch.setattr("fedkd.clients.costs.model_memory.machine_memory", lambda: memory)
    with pytest.raises(UserError) as caught:
        build_checked_models(plan, data)
    assert caught.value.key == key


def test_clients_with_a_shared_model_need_one_copy(digits_scenario, monkeypatch):
    wide = {"model": "mlp", "args": {"hidden": [500]}}
    tables = digits_scenario | {"clients": [wide], "fusion": {"strategy": "flwr:FedAvg"}}
    plan = parse_plan(tables)
    monkeypatch.setattr("fedkd.clients.costs.model_memory.machine_memory", lambda: 1_000_000)
    assert len(build_checked_models(plan, load_data(plan.scenario))) == 1


def test_only_live_clients_count_as_memory(digits_scenario, monkeypatch):
    wide = {"model": "mlp", "args": {"hidden": [500]}}  # 150 kB
    tables = digits_scenario | {"clients": [wide], "clients_per_round": 10}
    partition = {"scheme": "iid", "samples_per_client": 4, "min_samples": 2, "replacement": True}
    tables["data"] = tables["data"] | {"clients": 3000, "partition": partition}
    monkeypatch.setattr("fedkd.clients.costs.model_memory.machine_memory", lambda: 100_000_000)
    plan = parse_plan(tables)
    assert len(build_checked_models(plan, load_data(plan.scenario))) == 1, "a quarter of them"
    plan = parse_plan(tables | {"engine": {"kind": "inline", "live_clients": 2000}})
    with pytest.raises(UserError, match="3000 clients' models"):
        build_checked_models(plan, load_data(plan.scenario))


def test_a_fusion_larger_than_the_memory_is_refused(digits_scenario, monkeypatch):
    plan = parse_plan(digits_scenario | {"fusion": {"strategy": "knfu"}})
    data = load_data(plan.scenario)
    clients, numbers = plan.scenario.data.clients, len(data.transfer_x) * data.classes
    needed = estimate_fusion_bytes(plan, data)
    assert needed == 16 * clients * numbers + 80 * clients**2
    local = parse_plan(digits_scenario | {"fusion": {"strategy": "local"}})
    assert estimate_fusion_bytes(local, data) == 0
    monkeypatch.setattr("fedkd.clients.costs.model_memory.machine_memory", lambda: needed - 1)
    with pytest.raises(UserError, match="the fusion of a round needs"):
        _check_fusion(plan, data)


def test_live_clients_take_at_most_a_quarter_of_the_memory(digits_scenario, monkeypatch):
    plan = parse_plan(digits_scenario | {"clients": [{"model": "mlp", "args": {"hidden": []}}]})
    data = load_data(plan.scenario)
    guidance, weights = 4 * 60 * 10, 4 * (64 * 10 + 10)
    of_client = estimate_client_bytes(plan, data, build_checked_models(plan, data))
    assert of_client == 16_384 + guidance + weights
    kept = parse_plan(
        digits_scenario | {"training": {"optimizer_state": "kept"}, "clients": plan.scenario.clients}
    )
    assert estimate_client_bytes(kept, data, build_checked_models(kept, data)) == of_client + 2 * weights
    tries = {"fusion": {"strategy": "chosen_beta", "kd_weight": 0.3}, "clients": plan.scenario.clients}
    chosen = parse_plan(digits_scenario | tries)
    assert estimate_client_bytes(chosen, data, build_checked_models(chosen, data)) == of_client + 5 * guidance
    monkeypatch.setattr("fedkd.clients.costs.model_memory.machine_memory", lambda: 100 * of_client)
    cpu = torch.device("cpu")
    assert [max_resident_clients(of_client, share, 1.0, cpu) for share in (1.0, 0.2, 0.001)] == [25, 5, 1]
