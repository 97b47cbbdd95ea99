"""A model that is never guided beside one that is: what trains which, and how they answer together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fedkd
from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.fusion.two_predictors import ALONE
from fedkd.plan.load import parse_plan

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def client(digits_scenario):
    tables = digits_scenario | {"fusion": {"strategy": "two_predictors", "kd_weight": 0.3}}
    plan = parse_plan(tables)
    return ClientFactory(plan, load_data(plan.scenario)).build(0)


def test_distillation_trains_only_the_main_model(client):
    client.complete(client.train(1))
    own, alone = client.weights(), client.weights(ALONE)
    targets = np.full((60, 10), 0.1, dtype=np.float32)
    client.complete(client.learn({"targets": targets}, 1))
    assert all((client.weights(ALONE)[name] == alone[name]).all() for name in alone)
    assert any((client.weights()[name] != own[name]).any() for name in own)


def test_the_undistilled_model_ignores_rehearsal(client, digits_scenario):
    """After guidance and a second training it is where it is without any guidance."""
    unguided = ClientFactory(client.plan, load_data(client.plan.scenario)).build(0)
    for one in (client, unguided):
        one.complete(one.train(1))
    client.complete(client.learn({"targets": np.eye(10, dtype=np.float32)[np.arange(60) % 10]}, 1))
    for one in (client, unguided):
        one.complete(one.train(2))
    for name, values in unguided.weights(ALONE).items():
        np.testing.assert_allclose(client.weights(ALONE)[name], values, rtol=1e-5, atol=1e-6)
    assert any((client.weights()[name] != values).any() for name, values in unguided.weights().items())


def test_combined_answers_equal_a_hand_computation(client):
    client.complete(client.train(1))
    x = client.data.global_x

    def softmax(network):
        with torch.no_grad():
            z = network.eval()(torch.from_numpy(x)).numpy().astype(np.float64)
        z = np.exp(z - z.max(axis=1, keepdims=True))
        return z / z.sum(axis=1, keepdims=True)

    a, b = softmax(client.network(ALONE)), softmax(client.network())
    lacked = np.bincount(client.data.train_y, minlength=10) == 0
    assert 0 < lacked.sum() < 10
    gate = b[:, lacked].sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        np.exp(client.evaluator.answer(x)), (1 - gate) * a + gate * b, rtol=1e-3, atol=1e-6
    )


def test_uploads_cost_as_much_as_those_of_experts(digits_scenario, tmp_path):
    sent = []
    for strategy in ("experts", "two_predictors"):
        tables = digits_scenario | {"rounds": 1, "fusion": {"strategy": strategy}}
        final = fedkd.run(tables, out=tmp_path / strategy).summary["final"]
        sent.append((final["bytes_up"], final["bytes_down"]))
    assert sent[0] == sent[1]
