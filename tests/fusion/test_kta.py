"""KTA against loops, and the limits of its two exponents."""

from __future__ import annotations

import math

import knfu_by_loops
import numpy as np
import pytest
from numpy.testing import assert_allclose

from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.distillation.kta import KTA
from fedkd.fusion.math.probabilities import softmax
from fedkd.fusion.strategy import Knowledge
from fedkd.randomness import numpy_generator

LABELS = np.array([0, 2, 1, 1])


def draw(clients=3, samples=4, classes=3, seed=0) -> np.ndarray:
    return numpy_generator(seed, "test logits").normal(0, 2, (clients, samples, classes)).astype(np.float32)


def fuse(logits, labels=LABELS, clients=None, **hyperparameters):
    clients = tuple(range(len(logits))) if clients is None else clients
    knowledge = Knowledge(clients=clients, logits=logits, samples=np.full(len(logits), 10), labels=labels)
    return KTA(**hyperparameters).fuse(knowledge, {})


def smoothed(row, epsilon) -> list[float]:
    return [(value + epsilon) / (1 + len(row) * epsilon) for value in row]


def by_loops(logits, labels, *, beta, gamma, divergence, temperature, epsilon=1e-6):
    clients, samples, _ = logits.shape
    q = [[knfu_by_loops.softmax(row, temperature) for row in client] for client in logits.tolist()]
    weights, targets = np.empty((clients, clients)), np.zeros(logits.shape)
    for n in range(clients):
        for m in range(clients):
            if divergence == "kl":
                pairs = zip(q[n], q[m], strict=True)
                rows = [knfu_by_loops.kl(smoothed(a, epsilon), smoothed(b, epsilon)) for a, b in pairs]
                d = math.fsum(rows) / samples
            else:
                a, b = (np.array(q[client]).ravel() for client in (n, m))
                d = 1 - a @ b / math.sqrt((a @ a) * (b @ b))
            accuracy = sum(row.index(max(row)) == y for row, y in zip(q[m], labels, strict=True)) / samples
            weights[n, m] = math.exp(-beta * d + gamma * accuracy)
        weights[n] /= weights[n].sum()
        for m in range(clients):
            targets[n] += weights[n, m] * np.array(q[m])
    return weights, targets


@pytest.mark.parametrize("shape", [(3, 4, 3), (6, 15, 5)])
@pytest.mark.parametrize("divergence", ["kl", "cosine"])
@pytest.mark.parametrize(("beta", "gamma", "temperature"), [(0.7, 3.0, 1.0), (2.0, 0.5, 2.5)])
def test_kta_equals_loops(shape, divergence, beta, gamma, temperature) -> None:
    logits = draw(*shape, seed=4)
    labels = numpy_generator(5, "labels").integers(0, shape[2], shape[1])
    options = {"beta": beta, "gamma": gamma, "divergence": divergence, "temperature": temperature}
    guidance = fuse(logits, labels, **options)
    weights, targets = by_loops(logits, labels.tolist(), **options)
    assert_allclose(guidance.weights, weights, rtol=1e-4)
    assert_allclose(guidance.targets, targets, atol=1e-6)
    assert guidance.targets.dtype == np.float32


def test_exponent_limits_equal_their_special_cases() -> None:
    logits = draw()
    everyone = fuse(logits, beta=0.0, gamma=0.0)
    assert_allclose(everyone.weights, 1 / 3)
    assert_allclose(everyone.targets, np.broadcast_to(softmax(logits).mean(axis=0), logits.shape), atol=1e-6)
    knowledge = Knowledge(clients=(0, 1, 2), logits=logits, samples=np.ones(3))
    near = KnFu(beta=0.7, divergence="prediction_kl").fuse(knowledge, {})
    assert_allclose(fuse(logits, beta=0.7, gamma=0.0).weights, near.weights)
    assert_allclose(fuse(logits, beta=1e6).weights, np.eye(3))


def test_accuracy_alone_makes_the_best_client_teach_all() -> None:
    logits = np.zeros((3, 4, 3), dtype=np.float32)
    logits[1, np.arange(4), LABELS] = 1.0
    guidance = fuse(logits, beta=0.0, gamma=1e4)
    assert_allclose(guidance.weights, [[0, 1, 0]] * 3)
    assert_allclose(guidance.targets, np.broadcast_to(softmax(logits[1]), logits.shape), atol=1e-6)


def test_only_graph_neighbours_teach() -> None:
    logits = draw(5, 9, 4)
    labels = np.zeros(9, dtype=np.int64)
    everyone = fuse(logits, labels, beta=0.5)
    distances = -np.log(fuse(logits, labels, beta=1.0, gamma=0.0).weights)
    guidance = fuse(logits, labels, beta=0.5, neighbours=2)
    for n in range(5):
        kept = sorted(range(5), key=lambda m, n=n: (m != n, distances[n, m]))[:3]
        expected = np.zeros(5)
        expected[kept] = everyone.weights[n, kept] / everyone.weights[n, kept].sum()
        assert_allclose(guidance.weights[n], expected, rtol=1e-6, atol=1e-12)


def test_an_absent_client_has_no_weight() -> None:
    logits = draw()
    two = fuse(logits[[0, 2]], clients=(0, 2)).weights
    there = fuse(logits).weights[np.ix_([0, 2], [0, 2])]
    assert_allclose(two, there / there.sum(axis=1, keepdims=True), rtol=1e-9)


def test_kta_needs_labels_of_the_transfer_set() -> None:
    assert KTA().capabilities.needs == {"transfer_labels"}
