"""Fed-ET: consensus and disagreement by loops, the server's loss, and a server model that lives on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from small_views import SmallServer

from fedkd.fusion.distillation.fedet import FedET, consensus_and_diversity
from fedkd.fusion.strategy import Knowledge
from fedkd.randomness import numpy_generator

TRANSFER = numpy_generator(0, "test transfer").normal(0, 1, (4, 2)).astype(np.float32)


def draw(clients=3, samples=4, classes=3, seed=0) -> np.ndarray:
    return numpy_generator(seed, "test logits").normal(0, 2, (clients, samples, classes)).astype(np.float32)


def softmax(row) -> list[float]:
    exps = [math.exp(float(z)) for z in row]
    return [e / math.fsum(exps) for e in exps]


def by_loops(logits):
    clients, samples, classes = logits.shape
    consensus, diversity = [], np.zeros((samples, classes))
    for i in range(samples):
        variance = []
        for n in range(clients):
            row = [float(z) for z in logits[n, i]]
            mean = math.fsum(row) / classes
            variance.append(math.fsum((z - mean) ** 2 for z in row) / classes)

        def weighted(members, i=i, variance=variance):
            total = math.fsum(variance[n] for n in members)
            return [
                math.fsum(variance[n] / total * float(logits[n, i, c]) for n in members)
                for c in range(classes)
            ]

        agreed = weighted(range(clients))
        label = agreed.index(max(agreed))
        consensus.append(label)
        others = [n for n in range(clients) if logits[n, i].argmax() != label]
        if others:
            diversity[i] = softmax(weighted(others))
    return consensus, diversity


@pytest.mark.parametrize("shape", [(3, 4, 3), (7, 30, 5)])
def test_consensus_and_diversity_equal_loops(shape) -> None:
    logits = draw(*shape, seed=1)
    consensus, diversity = consensus_and_diversity(logits)
    expected_consensus, expected_diversity = by_loops(logits)
    assert_array_equal(consensus, expected_consensus)
    assert_allclose(diversity, expected_diversity, atol=1e-6)
    assert diversity.dtype == np.float32 and consensus.dtype == np.int64
    permuted = consensus_and_diversity(logits[::-1])
    assert_array_equal(permuted[0], consensus)
    assert_allclose(permuted[1], diversity, atol=1e-6)


def test_a_confident_client_outweighs_two_uncertain_ones() -> None:
    logits = np.array([[[0.2, 0, 0]], [[0.2, 0, 0]], [[0, 3, 0]]], dtype=np.float32)
    consensus, diversity = consensus_and_diversity(logits)
    assert_array_equal(consensus, [1])
    assert_allclose(diversity, [softmax([0.2, 0, 0])], rtol=1e-6)


def test_a_single_client_is_the_consensus() -> None:
    logits = draw(1)
    consensus, diversity = consensus_and_diversity(logits)
    assert_array_equal(consensus, logits[0].argmax(axis=-1))
    assert_array_equal(diversity, np.zeros((4, 3)))


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 5)),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([np.float16, np.float32]),
    equal=st.booleans(),
)
def test_disagreeing_clients_give_a_distribution_or_nothing(shape, seed, dtype, equal) -> None:
    signs = np.where(numpy_generator(seed, "signs").random(shape) < 0.5, -np.inf, np.inf)
    logits = np.zeros(shape, dtype=dtype) if equal else signs.astype(dtype)
    consensus, diversity = consensus_and_diversity(logits)
    assert consensus.shape == shape[1:2] and np.isfinite(diversity).all()
    sums = diversity.sum(axis=-1)
    assert_allclose(sums, np.round(sums), atol=1e-6)


def test_the_server_loss_and_gradient_equal_the_formula() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.0, 0.0]], requires_grad=True)
    consensus, diversity = torch.tensor([0, 2]), torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 0.0]])
    q = np.array([softmax(row) for row in logits.tolist()])
    ce = -(math.log(q[0][0]) + math.log(q[1][2])) / 2
    kl = sum(t * math.log(t / p) for t, p in zip([0.2, 0.5, 0.3], q[0], strict=True)) / 2
    loss = FedET(diversity=0.3).server_loss(logits, consensus, diversity)
    assert loss.item() == pytest.approx(ce + 0.3 * kl, rel=1e-5)
    loss.backward()
    gradient = (q - np.eye(3)[[0, 2]]) / 2
    gradient[0] += 0.3 * (q[0] - [0.2, 0.5, 0.3]) / 2
    assert_allclose(logits.grad, gradient, atol=1e-6)


@pytest.mark.parametrize("model", ["plain", "normed"])
def test_the_server_model_persists_over_rounds(model) -> None:
    server = SmallServer(TRANSFER, classes=3)
    strategy = FedET(server_model=model, server_epochs=2, server_lr=0.03, server_batch_size=9)
    knowledge = Knowledge(clients=(0, 2, 5), logits=draw(), samples=np.ones(3), server=server)
    first = strategy.fuse(knowledge, {})
    second = strategy.fuse(knowledge, first.memory)
    start, goes_on = server.trained
    assert start["options"] == (2, 9, 0.03, 0.0, 0)
    for name, values in server.initial_weights(model).items():
        assert_array_equal(start["weights"][name], values)
    assert_array_equal(start["targets"][0], by_loops(draw())[0])
    assert_allclose(start["targets"][1], by_loops(draw())[1], atol=1e-6)
    assert_array_equal(first.targets, server.logits(model, goes_on["weights"]))
    assert first.targets.shape == (4, 3) and not np.array_equal(first.targets, second.targets)


def test_the_server_learns_the_consensus() -> None:
    server = SmallServer(TRANSFER, classes=3)
    logits = np.repeat((4 * TRANSFER @ np.array([[1, -1, 0], [0, 1, -1]], np.float32))[None], 3, axis=0)
    knowledge = Knowledge(clients=(0, 1, 2), logits=logits, samples=np.ones(3), server=server)
    strategy = FedET(server_model="plain", server_epochs=100, server_lr=0.1)
    assert_array_equal(strategy.fuse(knowledge, {}).targets.argmax(axis=-1), logits[0].argmax(axis=-1))


def test_fedet_needs_server_training() -> None:
    assert FedET().capabilities.needs == {"server"}
