"""FedBuff and FedAsync against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small_views import SmallClient, SmallServer

from fedkd.fusion.strategy import Knowledge
from fedkd.fusion.views import FitSummary
from fedkd.fusion.weights.fedasync import FedAsync
from fedkd.fusion.weights.fedbuff import FedBuff
from fedkd.fusion.weights.parameters import COUNTERS, PARAMETERS

SERVER = SmallServer(np.zeros((2, 3), np.float32), 4, {0: "normed", 1: "normed"})
DRAWS = np.random.default_rng(0)
START = SERVER.initial_weights("normed")
"""With statistics and a counter."""


def flat(weights) -> np.ndarray:
    real = [weights[name].ravel() for name in sorted(weights) if weights[name].dtype.kind == "f"]
    return np.concatenate(real).astype(np.float64)


def trained(counter: int) -> SmallClient:
    """Return a client that has moved every weight, and has seen so many batches more."""
    weights = {
        name: (values + DRAWS.normal(size=values.shape)).astype(np.float32)
        if values.dtype.kind == "f"
        else values + counter
        for name, values in START.items()
    }
    client = SmallClient(
        logits=np.zeros((2, 4)), private_logits=np.zeros((2, 4)), means={}, counts=np.ones(4), weights=weights
    )
    client.last_fit = FitSummary(START, steps=1, lr=0.1)
    return client


def knowledge(uploads, ages, *, awaited: int = 0, exponent: float | None = 0.5) -> Knowledge:
    age = np.array(ages)
    return Knowledge(
        clients=tuple(range(len(uploads))),
        logits=None,
        samples=np.arange(1, len(uploads) + 1),
        age=age,
        freshness=None if exponent is None else (1.0 + age) ** -exponent,
        awaited=awaited,
        payload={name: [upload[name] for upload in uploads] for name in (PARAMETERS, COUNTERS)},
        server=SERVER,
    )


CLIENTS = [trained(5), trained(2), trained(9)]


def test_fedbuff_applies_the_mean_of_weighted_updates():
    strategy = FedBuff(server_lr=0.5)
    memory = strategy.prepare(SERVER).memory
    uploads = [strategy.upload(client) for client in CLIENTS]
    new = strategy.fuse(knowledge(uploads, [0, 3, 8]), memory).shared
    ways = [flat(client.weights()) - flat(START) for client in CLIENTS]
    expected = flat(START) + 0.5 / 3 * (ways[0] + ways[1] / 2 + ways[2] / 3)
    assert_allclose(flat(new), expected, rtol=0, atol=1e-6)
    counters = [values for values in new.values() if values.dtype.kind == "i"]
    assert [int(value) for value in counters] == [9]
    assert {name: values.shape for name, values in new.items()} == {n: v.shape for n, v in START.items()}


def test_fedasync_weights_models_less_with_staleness():
    strategy = FedAsync(mixing=0.6)
    memory = strategy.prepare(SERVER).memory
    new = strategy.fuse(knowledge([strategy.upload(CLIENTS[0])], [3]), memory).shared
    expected = (1 - 0.3) * flat(START) + 0.3 * flat(CLIENTS[0].weights())
    assert_allclose(flat(new), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", [FedBuff(), FedAsync()])
def test_uploads_in_several_calls_equal_one_call(strategy):
    memory = strategy.prepare(SERVER).memory
    uploads = [strategy.upload(client) for client in CLIENTS]
    whole = strategy.fuse(knowledge(uploads, [0, 1, 2]), memory)
    first = strategy.fuse(knowledge(uploads[:2], [0, 1], awaited=1), memory)
    assert not first.shared
    second = strategy.fuse(knowledge(uploads[2:], [2]), first.memory)
    assert second.memory.keys() == whole.memory.keys()
    for name, values in whole.shared.items():
        assert_array_equal(second.shared[name], values)


def test_fedbuff_without_staleness_is_the_plain_mean():
    strategy = FedBuff()
    memory = strategy.prepare(SERVER).memory
    uploads = [strategy.upload(client) for client in CLIENTS]
    new = strategy.fuse(knowledge(uploads, [0, 0, 0], exponent=None), memory).shared
    assert_allclose(flat(new), np.mean([flat(c.weights()) for c in CLIENTS], axis=0), rtol=0, atol=1e-6)
