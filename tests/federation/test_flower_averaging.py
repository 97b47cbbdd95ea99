"""Strategies that Flower ships, named in a scenario."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tomli_w
from fedkd.federation.flower_strategies import (
    flower_hyperparameters,
    flower_strategy_names,
    make_flower_strategy,
    restore_strategy,
    strategy_state,
)
from flwr.serverapp.strategy import Strategy

import fedkd
from fedkd.clients.factory import ClientFactory
from fedkd.data.federated import load_federated_data
from fedkd.errors import RunFailed, UserError
from fedkd.federation import server_app
from fedkd.federation.checkpoint import CheckpointStore
from fedkd.plan.load import load_scenario
from fedkd.scenario.schema import Scenario

REQUIRED = {"QFedAvg": {"client_learning_rate": 0.01}}


@pytest.fixture
def averaged(digits_scenario) -> dict:
    tables = digits_scenario | {"clients": [{"model": "mlp", "args": {"hidden": [8]}}]}
    tables["data"]["partition"] = {"scheme": "quantity", "alpha": 1.0, "samples_per_client": 60}
    return tables


def load(tables: dict, folder, **fusion) -> Scenario:
    path = folder / "scenario.toml"
    path.write_text(tomli_w.dumps(tables | {"fusion": fusion}))
    return load_scenario(path)


def weights_after(scenario: Scenario, folder) -> dict[str, np.ndarray]:
    """Run a scenario and return the federation's weights at its end."""
    fedkd.run(scenario, out=folder)
    checkpoint = CheckpointStore(folder).latest()
    assert checkpoint is not None
    return {k.removeprefix("weights/"): v for k, v in checkpoint.server.items() if k.startswith("weights/")}


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(float(np.square(a[k].astype(np.float64) - b[k]).sum()) for k in a))


def test_the_strategies_of_the_papers_are_there():
    names = flower_strategy_names()
    assert {"FedAvg", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad", "FedProx", "QFedAvg"} <= set(names)
    assert {"FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan"} <= set(names)
    assert not any(name.startswith(("FedXgb", "Differential")) for name in names)


@pytest.mark.parametrize("name", flower_strategy_names())
def test_each_runs_from_a_scenario(name, averaged, tmp_path):
    scenario = load(averaged, tmp_path, strategy=f"flwr:{name}", **REQUIRED.get(name, {}))
    start = ClientFactory(scenario, load_federated_data(scenario)).initial_weights()
    end = weights_after(scenario, tmp_path / "run")
    assert list(end) != [] and set(end) == set(start)
    for key, values in end.items():
        assert (values.dtype, values.shape) == (start[key].dtype, start[key].shape)
        assert np.isfinite(values).all()
    assert distance(start, end) > 1e-4


def test_fedavg_is_the_mean_weighted_by_samples(averaged, tmp_path):
    # Batch normalisation brings running statistics, and a counter that is an integer.
    tables = averaged | {"rounds": 1, "clients": [{"model": "resnet8", "args": {"norm": "batch"}}]}
    scenario = load(tables, tmp_path, strategy="flwr:FedAvg")
    data = load_federated_data(scenario)
    clients = ClientFactory(scenario, data)
    start = clients.initial_weights()
    trained, samples = [], []
    for index in range(scenario.data.clients):
        client = clients.build(index)
        client.load_weights(start)
        client.train(1)
        trained.append(client.weights())
        samples.append(client.num_train_samples)
    assert len(set(samples)) > 1
    share = np.array(samples, dtype=np.float64) / sum(samples)
    end = weights_after(scenario, tmp_path / "run")
    statistics = [key for key in end if "running_" in key]
    assert statistics
    for key, values in end.items():
        wanted = sum(w * one[key].astype(np.float64) for w, one in zip(share, trained, strict=True))
        if np.issubdtype(values.dtype, np.integer):
            wanted = np.rint(wanted)
        np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=1e-6, err_msg=key)


def test_the_proximal_term_holds_clients_near_what_they_received(averaged, tmp_path):
    scenario = load(averaged, tmp_path, strategy="flwr:FedProx")
    clients = ClientFactory(scenario, load_federated_data(scenario))
    start = clients.initial_weights()
    # One with several steps: the first has no distance yet that could pull.
    client = max(
        (clients.build(n) for n in range(scenario.data.clients)), key=lambda one: one.num_train_samples
    )
    moved = []
    for mu in (0.0, 1.0, 100.0):
        client.load_weights(start)
        client.train(1, proximal_mu=mu)
        moved.append(distance(start, client.weights()))
    assert moved[0] > moved[1] > moved[2] > 0


def test_a_scenarios_mu_reaches_the_clients(averaged, tmp_path):
    average = weights_after(load(averaged, tmp_path, strategy="flwr:FedAvg"), tmp_path / "fedavg")
    free = weights_after(load(averaged, tmp_path, strategy="flwr:FedProx", proximal_mu=0.0), tmp_path / "0")
    held = weights_after(load(averaged, tmp_path, strategy="flwr:FedProx", proximal_mu=10.0), tmp_path / "10")
    assert all(free[key].tobytes() == average[key].tobytes() for key in average)
    assert (tmp_path / "0" / "metrics.jsonl").read_bytes() == (
        tmp_path / "fedavg" / "metrics.jsonl"
    ).read_bytes()
    assert distance(held, average) > 1e-3


def test_clients_evaluate_the_weights_that_were_averaged(averaged, tmp_path):
    scenario = load(averaged | {"rounds": 1}, tmp_path, strategy="flwr:FedAvg")
    result = fedkd.run(scenario, out=tmp_path / "run")
    rows = [r for r in result.metrics() if (r["split"], r["metric"]) == ("global", "accuracy")]
    assert len({row["value"] for row in rows}) == 1, "all clients hold the same weights"
    data = load_federated_data(scenario)
    clients = ClientFactory(scenario, data)
    client = clients.build(2)
    checkpoint = CheckpointStore(tmp_path / "run").latest()
    client.load_weights({k[8:]: v for k, v in checkpoint.server.items() if k.startswith("weights/")})
    assert client.evaluate("global").accuracy == rows[0]["value"]
    local = next(
        r["value"]
        for r in result.metrics()
        if (r["client"], r["split"], r["metric"]) == (2, "local", "accuracy")
    )
    assert client.evaluate("local").accuracy == local


def test_hyperparameters_are_flowers_without_what_the_scenario_decides():
    assert flower_hyperparameters("flwr:FedAdam") == flower_hyperparameters("FedAdam")
    assert set(flower_hyperparameters("FedAdam")) == {"eta", "eta_l", "beta_1", "beta_2", "tau"}
    assert flower_hyperparameters("FedAvg") == {}


@pytest.mark.parametrize(
    ("name", "given", "key", "text"),
    [
        ("FedAdm", {}, "fusion.strategy", "did you mean 'FedAdam'"),
        ("FedXgbBagging", {}, "fusion.strategy", "no strategy of Flower"),
        ("FedAdam", {"etta": 1.0}, "fusion.etta", "did you mean 'eta'"),
        ("FedAdam", {"fraction_train": 0.5}, "fusion.fraction_train", "unknown key"),
        ("QFedAvg", {}, "fusion.client_learning_rate", "needs a value"),
        ("FedAvgM", {"server_momentum": "much"}, "fusion.server_momentum", "must be a number, got 'much'"),
        ("Krum", {"num_malicious_nodes": 0.5}, "fusion.num_malicious_nodes", "must be a whole number"),
        ("FedProx", {"proximal_mu": True}, "fusion.proximal_mu", "must be a number"),
    ],
)
def test_what_is_wrong_with_a_value_is_told_with_its_key(name, given, key, text):
    with pytest.raises(UserError, match=text) as caught:
        make_flower_strategy(f"flwr:{name}", given)
    assert caught.value.key == key


def test_what_flower_cannot_fuse_names_the_round(averaged, tmp_path, monkeypatch):
    from flwr.serverapp.strategy import FedAvg

    def broken(self, server_round, replies):
        raise FloatingPointError("no mean today")

    monkeypatch.setattr(FedAvg, "aggregate_train", broken)
    with pytest.raises(RunFailed, match=r"round 1: .*FedAvg.*FloatingPointError: no mean today"):
        fedkd.run(load(averaged, tmp_path, strategy="flwr:FedAvg"), out=tmp_path / "run")


@pytest.mark.parametrize("name", ["FedAdam", "FedAvgM", "FedYogi", "FedAdagrad"])
def test_state_is_whole_and_in_order(name, averaged, tmp_path, monkeypatch):
    given = {"server_momentum": 0.9} if name == "FedAvgM" else {}
    scenario = load(averaged, tmp_path, strategy=f"flwr:{name}", **given)
    used: list[Strategy] = []

    def make(*arguments) -> Strategy:
        used.append(make_flower_strategy(*arguments))
        return used[-1]

    monkeypatch.setattr(server_app, "make_flower_strategy", make)
    fedkd.run(scenario, out=tmp_path / "run")
    state = strategy_state(used[0])
    assert state
    fresh = make_flower_strategy(name, given)
    restore_strategy(fresh, dict(sorted(state.items(), reverse=True)))
    again = strategy_state(fresh)
    assert set(again) == set(state)
    assert all(again[key].tobytes() == state[key].tobytes() for key in state)
