"""Gossip against float64 by hand: weights mix, masses undo what is heard more often, the mean is kept."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small_views import SmallClient

from fedkd.fusion.strategy import Knowledge
from fedkd.fusion.views import FitSummary
from fedkd.fusion.weights.gossip import Gossip
from fedkd.fusion.weights.mixing import metropolis_weights, push_sum_weights
from fedkd.plan.graph import Graph

N, P = 5, 7
ONE_WAY = Graph.from_json('{"hears": [[1, 2], [2], [3], [4], [0]]}').edges(1)
"""A ring that goes one way, with a client that two hear."""


def client(values: np.ndarray) -> SmallClient:
    made = SmallClient(weights={"weight": values.astype(np.float32), "seen": np.array([3])})
    made.last_fit = FitSummary(made.weights(), steps=1, lr=0.1)
    return made


def mix(clients: list[SmallClient], mixing: np.ndarray) -> np.ndarray:
    """Have all of them mix once; return the weights of the guidance."""
    strategy = Gossip()
    uploads = [strategy.upload(one) for one in clients]
    extra = {name: [upload[name] for upload in uploads] for name in uploads[0]}
    known = Knowledge(tuple(range(N)), None, np.ones(N, np.int64), payload=extra, mixing=mixing)
    guidance = strategy.fuse(known, {})
    for one, own in zip(clients, guidance.personal, strict=True):
        strategy.apply(one, own)
    return guidance.weights


def weights_of(clients: list[SmallClient]) -> np.ndarray:
    return np.stack([one.weights()["weight"] for one in clients]).astype(np.float64)


@pytest.fixture
def clients() -> list[SmallClient]:
    return [client(row) for row in np.random.default_rng(0).normal(size=(N, P))]


@pytest.mark.parametrize("kind", ["ring", "k_regular", "complete"])
def test_metropolis_mixing_preserves_the_mean(kind, clients):
    mixing = metropolis_weights(Graph(N, kind, 0).edges(1))
    before = weights_of(clients)
    weights = mix(clients, mixing)
    assert_allclose(weights_of(clients), mixing @ before, atol=1e-6)
    assert_allclose(weights_of(clients).mean(axis=0), before.mean(axis=0), atol=1e-6)
    assert_allclose(weights, mixing, atol=1e-12)
    assert [one.memory["mass"].tolist() for one in clients] == [[1.0]] * N
    assert all(one.weights()["seen"] == 3 for one in clients)


def test_isolated_clients_are_unchanged(clients):
    before = weights_of(clients)
    mix(clients, metropolis_weights(np.eye(N, dtype=bool)))
    assert_array_equal(weights_of(clients), before)


def test_push_sum_approaches_the_mean_on_directed_links(clients):
    mixing, generator = push_sum_weights(ONE_WAY), np.random.default_rng(1)
    x, w = weights_of(clients), np.ones(N)
    for _ in range(4):
        steps = generator.normal(size=(N, P))
        for one, step in zip(clients, steps, strict=True):  # what local training does
            start = one.weights()
            one.last_fit = FitSummary(start, steps=1, lr=0.1)
            one.load_weights(start | {"weight": start["weight"] + step.astype(np.float32)})
        x, w = mixing @ (x + steps), mixing @ w
        weights = mix(clients, mixing)
        assert_allclose(weights_of(clients), x / w[:, None], atol=1e-5)
        assert_allclose([one.memory["mass"][0] for one in clients], w, atol=1e-6)
        assert_allclose(weights.sum(axis=1), 1.0)
    assert np.ptp(w) > 0.1
    total = sum(one.memory["mass"][0] * one.weights()["weight"].astype(np.float64) for one in clients)
    assert_allclose(total / N, x.sum(axis=0) / N, atol=1e-5)
    for _ in range(60):
        for one in clients:
            one.last_fit = FitSummary(one.weights(), steps=0, lr=0.1)
        mix(clients, mixing)
    assert_allclose(weights_of(clients), np.tile(x.sum(axis=0) / N, (N, 1)), atol=1e-4)


def test_push_sum_statistics_stay_non_negative():
    one = SmallClient(weights={"weight": np.ones(2, np.float32), "running_var": np.full(2, 0.1, np.float32)})
    one.trainable = lambda: ("weight",)
    one.last_fit = FitSummary(
        {"weight": np.zeros(2, np.float32), "running_var": np.ones(2, np.float32)}, steps=1, lr=0.1
    )
    one.memory["mass"] = np.array([0.25], np.float32)
    sent = Gossip().upload(one)
    assert_allclose(sent["parameters"], [1.0, 1.0, 0.025, 0.025])  # 1 + (¼ − 1) · 0, and ¼ · 0.1
