"""The view of a client that its strategy receives."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fedkd.clients
from fedkd.clients.client import Client
from fedkd.clients.factory import ClientFactory
from fedkd.clients.strategy_view import StrategyView
from fedkd.data.federated import load_federated_data
from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.views import ClientView
from fedkd.plan.load import parse_plan


@pytest.fixture
def client(digits_scenario) -> Client:
    clients = [{"model": "mlp", "args": {"hidden": [8]}}]
    plan = parse_plan(digits_scenario | {"clients": clients})
    return ClientFactory(plan, load_federated_data(plan.scenario)).build(0)


@pytest.fixture
def twin(client) -> Client:
    """The same client once more."""
    return ClientFactory(client.plan, load_federated_data(client.plan.scenario)).build(0)


def targets(label: int) -> np.ndarray:
    return np.tile(np.eye(10, dtype=np.float32)[label], (60, 1))


def same_weights(one: Client, other: Client) -> bool:
    return all(np.array_equal(values, other.weights()[name]) for name, values in one.weights().items())


READS: dict[str, Callable[[Client], np.ndarray]] = {
    "logits": lambda view: view.logits(),
    "private_logits": lambda view: view.private_logits(),
    "class_means": lambda view: view.class_means("features"),
    "weights": lambda view: np.concatenate([values.ravel() for values in view.weights().values()]),
}


@pytest.mark.parametrize("what", READS)
def test_distillation_changes_the_weights_read_at_once(what, client, twin):
    read, view = READS[what], client.at(1)
    before = read(view)
    view.distil(targets(3))
    twin.at(1).distil(targets(3))
    seen = read(view)
    assert_array_equal(seen, read(twin.at(1)))
    assert not np.array_equal(seen, before)


# Strategies of one's own --------------------------------------------------------------------------------


def test_a_strategy_reads_the_weights_after_its_distillation(client, twin, monkeypatch):
    seen = {}

    def apply(self, view, guidance):
        before = view.logits()
        view.distil(guidance["targets"])
        seen["moved"] = not np.array_equal(view.logits(), before)
        seen["logits"] = view.logits()
        return targets(5), None

    monkeypatch.setattr(KnFu, "apply", apply)
    client.complete(client.learn({"targets": targets(3)}, 1))
    assert seen["moved"]
    twin.at(1).distil(targets(3))
    assert_array_equal(seen["logits"], twin.predict(twin.data.transfer_x))
    twin.at(1).distil(targets(5))
    assert same_weights(client, twin), "returned targets are distilled too"


def test_a_strategy_may_distil_for_its_upload(client, twin, monkeypatch):
    def upload(self, view):
        logits = view.logits()
        view.distil(targets(3))
        return {"logits": logits}

    monkeypatch.setattr(KnFu, "upload", upload)
    sent = client.upload(1)["logits"]
    assert_array_equal(sent, twin.predict(twin.data.transfer_x))
    twin.at(1).distil(targets(3))
    assert same_weights(client, twin)


def test_a_request_selects_the_predicted_samples(client):
    rows = np.array([4, 9])
    assert_array_equal(client.at(1, rows).logits(), client.predict(client.data.transfer_x[rows]))


def test_class_means_average_each_class_separately(client):
    x, y = client.data.train_x, client.data.train_y
    means, logits = client.at(1).class_means("logits"), client.predict(x)
    counts = client.at(1).label_counts()
    assert counts.tolist() == [int((y == c).sum()) for c in range(10)]
    for c in range(10):
        wanted = logits[y == c].mean(axis=0) if counts[c] else np.zeros(10)
        np.testing.assert_allclose(means[c], wanted, rtol=1e-5, atol=1e-5)


def test_a_client_passes_its_view_to_the_strategy(client):
    members = [name for name in (*vars(ClientView), *ClientView.__annotations__) if not name.startswith("_")]
    assert len(members) > 25 and all(hasattr(Client, name) or name in vars(client) for name in members)


def test_class_hierarchies_have_at_most_two_levels():
    assert Client.__mro__ == (Client, StrategyView, object)
    for found in pkgutil.walk_packages(fedkd.clients.__path__, "fedkd.clients."):
        module = importlib.import_module(found.name)
        for name, part in inspect.getmembers(module, inspect.isclass):
            own = [base for base in part.__mro__ if base.__module__.startswith("fedkd.clients.")]
            assert len(own) <= 2, f"{name} inherits through {len(own)} classes"
