"""Strategies that Flower ships, named in a scenario."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tomli_w
from flwr.serverapp.strategy import Strategy

import fedkd
from fedkd.clients.factory import ClientFactory, initial_weights
from fedkd.data.federated import load_federated_data
from fedkd.errors import RunFailed
from fedkd.federation import flower_strategies
from fedkd.federation.checkpoint import CheckpointStore
from fedkd.federation.flower_averaging import restore_strategy, strategy_state
from fedkd.federation.flower_strategies import flower_strategy_names, make_flower_strategy
from fedkd.plan.load import load_plan
from fedkd.plan.plan import Plan
from fedkd.storage.namespaces import strip_prefix

pytestmark = pytest.mark.usefixtures("no_report")

REQUIRED = {"QFedAvg": {"client_learning_rate": 0.01}}


@pytest.fixture
def averaged(digits_scenario) -> dict:
    tables = digits_scenario | {"clients": [{"model": "mlp", "args": {"hidden": [8]}}]}
    tables["data"]["partition"] = {"scheme": "quantity", "alpha": 1.0, "samples_per_client": 60}
    return tables


def load(tables: dict, folder, **fusion) -> Plan:
    path = folder / "scenario.toml"
    path.write_text(tomli_w.dumps(tables | {"fusion": fusion}))
    return load_plan(path)


def weights_after(plan: Plan, folder) -> dict[str, np.ndarray]:
    """Run a scenario and return the federation's weights at its end."""
    fedkd.run(plan, out=folder)
    checkpoint = CheckpointStore(folder).latest()
    assert checkpoint is not None
    return strip_prefix("weights/", checkpoint.server)


def distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(float(np.square(a[k].astype(np.float64) - b[k]).sum()) for k in a))


@pytest.mark.parametrize("name", flower_strategy_names())
def test_each_flower_strategy_runs_from_a_scenario(name, averaged, tmp_path):
    plan = load(averaged, tmp_path, strategy=f"flwr:{name}", **REQUIRED.get(name, {}))
    start = initial_weights(plan, load_federated_data(plan.scenario))
    end = weights_after(plan, tmp_path / "run")
    assert list(end) != [] and set(end) == set(start)
    for key, values in end.items():
        assert (values.dtype, values.shape) == (start[key].dtype, start[key].shape)
        assert np.isfinite(values).all()
    assert distance(start, end) > 1e-4


def test_fedavg_is_the_mean_weighted_by_samples(averaged, tmp_path):
    # Batch normalisation brings running statistics, and a counter that is an integer.
    tables = averaged | {"rounds": 1, "clients": [{"model": "resnet8", "args": {"norm": "batch"}}]}
    plan = load(tables, tmp_path, strategy="flwr:FedAvg")
    data = load_federated_data(plan.scenario)
    clients = ClientFactory(plan, data)
    start = initial_weights(plan, clients.data)
    trained, samples = [], []
    for index in range(plan.scenario.data.clients):
        client = clients.build(index)
        client.load_weights(start)
        client.complete(client.train(1))
        trained.append(client.weights())
        samples.append(client.num_train_samples)
    assert len(set(samples)) > 1
    share = np.array(samples, dtype=np.float64) / sum(samples)
    end = weights_after(plan, tmp_path / "run")
    statistics = [key for key in end if "running_" in key]
    assert statistics
    for key, values in end.items():
        wanted = sum(w * one[key].astype(np.float64) for w, one in zip(share, trained, strict=True))
        if np.issubdtype(values.dtype, np.integer):
            wanted = np.rint(wanted)
        np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=1e-6, err_msg=key)


def test_the_proximal_term_keeps_clients_near_received_weights(averaged, tmp_path):
    plan = load(averaged, tmp_path, strategy="flwr:FedProx")
    clients = ClientFactory(plan, load_federated_data(plan.scenario))
    start = initial_weights(plan, clients.data)
    # One with several steps: the first has no distance yet that could pull.
    client = max(
        (clients.build(n) for n in range(plan.scenario.data.clients)), key=lambda one: one.num_train_samples
    )
    moved = []
    for mu in (0.0, 1.0, 100.0):
        client.load_weights(start)
        client.complete(client.train(1, proximal_mu=mu))
        moved.append(distance(start, client.weights()))
    assert moved[0] > moved[1] > moved[2] > 0


@pytest.mark.parametrize("mu", [0.0, 3.0])
def test_the_local_objective_of_fedasync_equals_the_formula(mu, averaged, tmp_path):
    """Whole batches of softmax regression: four steps of ``∇CE(w) + μ (w − w_received)``."""
    lr, steps = 0.3, 4
    training = {"optimizer": "sgd", "lr": lr, "batch_size": 10_000, "local_epochs": steps}
    tables = averaged | {"training": training, "clients": [{"model": "mlp", "args": {"hidden": []}}]}
    plan = load(tables, tmp_path, strategy="fedasync", proximal_mu=mu)
    client = ClientFactory(plan, load_federated_data(plan.scenario)).build(0)
    start = {name: values.astype(np.float64) for name, values in client.weights().items()}
    x, y = (values.numpy() for values in client.train(1).send(None).arrays)
    x = x.reshape(len(x), -1).astype(np.float64)
    wanted = dict(start)
    for _ in range(steps):
        z = x @ wanted["head.weight"].T + wanted["head.bias"]
        powers = np.exp(z - z.max(axis=1, keepdims=True))
        slope = (powers / powers.sum(axis=1, keepdims=True) - np.eye(z.shape[1])[y]) / len(y)
        slopes = {"head.weight": slope.T @ x, "head.bias": slope.sum(axis=0)}
        wanted = {n: w - lr * (slopes[n] + mu * (w - start[n])) for n, w in wanted.items()}
    client.complete(client.train(1))
    for name, values in client.weights().items():
        np.testing.assert_allclose(values, wanted[name], rtol=0, atol=1e-5, err_msg=name)


def test_a_scenarios_mu_reaches_the_clients(averaged, tmp_path):
    average = weights_after(load(averaged, tmp_path, strategy="flwr:FedAvg"), tmp_path / "fedavg")
    free = weights_after(load(averaged, tmp_path, strategy="flwr:FedProx", proximal_mu=0.0), tmp_path / "0")
    held = weights_after(load(averaged, tmp_path, strategy="flwr:FedProx", proximal_mu=10.0), tmp_path / "10")
    assert all(free[key].tobytes() == average[key].tobytes() for key in average)
    assert (tmp_path / "0" / "metrics.jsonl").read_bytes() == (
        tmp_path / "fedavg" / "metrics.jsonl"
    ).read_bytes()
    assert distance(held, average) > 1e-3


def test_clients_evaluate_the_averaged_weights(averaged, tmp_path):
    plan = load(averaged | {"rounds": 1}, tmp_path, strategy="flwr:FedAvg")
    result = fedkd.run(plan, out=tmp_path / "run")
    rows = [r for r in result.metrics() if (r["split"], r["metric"]) == ("global", "accuracy")]
    assert len({row["value"] for row in rows}) == 1, "all clients hold the same weights"
    data = load_federated_data(plan.scenario)
    clients = ClientFactory(plan, data)
    client = clients.build(2)
    checkpoint = CheckpointStore(tmp_path / "run").latest()
    client.load_weights(strip_prefix("weights/", checkpoint.server))
    assert client.evaluator.evaluate("global").accuracy == rows[0]["value"]
    local = next(
        r["value"]
        for r in result.metrics()
        if (r["client"], r["split"], r["metric"]) == (2, "local", "accuracy")
    )
    assert client.evaluator.evaluate("local").accuracy == local


def test_flowers_failed_fusion_names_the_round(averaged, tmp_path, monkeypatch):
    from flwr.serverapp.strategy import FedAvg

    def broken(self, server_round, replies):
        raise FloatingPointError("no mean today")

    monkeypatch.setattr(FedAvg, "aggregate_train", broken)
    with pytest.raises(RunFailed, match=r"round 1: .*FedAvg.*FloatingPointError: no mean today"):
        fedkd.run(load(averaged, tmp_path, strategy="flwr:FedAvg"), out=tmp_path / "run")


@pytest.mark.parametrize("name", ["FedAdam", "FedAvgM", "FedYogi", "FedAdagrad"])
def test_the_state_is_complete_and_ordered(name, averaged, tmp_path, monkeypatch):
    given = {"server_momentum": 0.9} if name == "FedAvgM" else {}
    plan = load(averaged, tmp_path, strategy=f"flwr:{name}", **given)
    used: list[Strategy] = []

    def make(*arguments) -> Strategy:
        used.append(make_flower_strategy(*arguments))
        return used[-1]

    monkeypatch.setattr(flower_strategies, "make_flower_strategy", make)
    fedkd.run(plan, out=tmp_path / "run")
    state = strategy_state(used[0])
    assert state
    fresh = make_flower_strategy(name, given)
    restore_strategy(fresh, dict(sorted(state.items(), reverse=True)))
    again = strategy_state(fresh)
    assert set(again) == set(state)
    assert all(again[key].tobytes() == state[key].tobytes() for key in state)
