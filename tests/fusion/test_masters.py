"""`masters`: more and stronger clients are heard as rounds go by, of them the nearest on each sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from rounds import draw_logits, knowledge_of, softmax_by_loops
from small_views import SmallClient

from fedkd.fusion.experimental.masters import Masters
from fedkd.fusion.math.probabilities import softmax

ACCURACIES = [0.9, 0.2, 0.5, 0.4]


def told(strategy: Masters, logits: np.ndarray, accuracies=ACCURACIES, **fields):
    said = [np.array([value], np.float32) for value in accuracies[: len(logits)]]
    return strategy.fuse(knowledge_of(logits, payload={"accuracy": said}, **fields), {})


def targets_by_loops(logits: np.ndarray, heard: list[int], weight: float) -> np.ndarray:
    q = softmax_by_loops(logits)
    clients, samples, classes = logits.shape
    targets = np.zeros(logits.shape)
    for n in range(clients):
        for i in range(samples):
            mean = [sum(q[j][i][c] for j in heard) for c in range(classes)]
            best, score = n, -math.inf
            for j in heard:
                apart = sum(a * math.log(a / b) for a, b in zip(q[j][i], q[n][i], strict=True))
                mine = (np.argmax(q[j][i]) == np.argmax(mean)) - weight * apart
                if j != n and mine > score:
                    best, score = j, mine
            targets[n, i] = q[best][i]
    return targets


@pytest.mark.parametrize(
    ("order", "round", "heard"),
    [
        ("weak_first", 1, [1, 3]),
        ("weak_first", 2, [1, 2, 3]),
        ("weak_first", 4, [0, 1, 2, 3]),
        ("strong_first", 1, [0, 2]),
    ],
)
@pytest.mark.parametrize("weight", [0.0, 0.5, 5.0])
def test_masters_equals_loops(order, round, heard, weight) -> None:
    """Of four clients ⌈4 (¼ + ¾ t/4)⌉ are heard: 2, 3, 4 and 4 in rounds 1 to 4 of 8."""
    logits = draw_logits(4, 7, 3)
    strategy = Masters(first_share=0.25, order=order, distance_weight=weight)
    guidance = told(strategy, logits, round=round, rounds=8)
    if weight == 0.0:  # whoever agrees is as good as another who does: they share the sample
        taught = guidance.weights > 0
        assert set(np.flatnonzero(taught.any(axis=0))) <= set(heard)
        return
    assert_allclose(guidance.targets, targets_by_loops(logits, heard, weight), atol=1e-6)
    assert_allclose(guidance.weights.sum(axis=1), 1.0)
    assert_array_equal(np.diag(guidance.weights), 0.0)


def test_the_number_of_masters_follows_the_schedule() -> None:
    usual = Masters()
    assert [usual.number_heard(10, round, 10) for round in (1, 2, 4, 5, 9)] == [5, 6, 9, 10, 10]
    assert [Masters(warm_up=0.0).number_heard(10, round, 10) for round in (1, 9)] == [10, 10]
    assert Masters(first_share=0.0, warm_up=1.0).number_heard(10, 1, 1000) == 1


def test_without_warm_up_the_client_order_has_no_effect() -> None:
    logits = draw_logits(4, 7, 3)
    usual = told(Masters(warm_up=0.0), logits).targets
    for order in ("strong_first", "random"):
        assert_array_equal(told(Masters(warm_up=0.0, order=order), logits).targets, usual)


def test_tied_clients_teach_together() -> None:
    logits = np.repeat(draw_logits(1, 5, 3), 3, axis=0)
    guidance = told(Masters(first_share=0.0), logits, [0.5, 0.5, 0.5], rounds=100)
    assert_allclose(guidance.weights, (1 - np.eye(3)) / 2)


def test_a_single_client_learns_from_itself() -> None:
    logits = draw_logits(3, 5, 3)
    assert_array_equal(told(Masters(), logits[:1]).targets, softmax(logits[:1]))
    early = told(Masters(first_share=0.0, warm_up=1.0), logits, rounds=100)
    assert_array_equal(early.targets, np.broadcast_to(softmax(logits[1]), logits.shape))
    assert_array_equal(early.weights[:, 1], 1.0)


def test_confidence_ranks_clients_without_held_out_samples() -> None:
    strategy = Masters(held_out_share=0.0, first_share=0.0, warm_up=1.0)
    logits = np.array([[[4, 0, 0]], [[1, 0, 0]], [[0, 2, 0]]], dtype=np.float32)
    guidance = strategy.fuse(knowledge_of(logits, rounds=100), {})
    assert_array_equal(guidance.weights[:, 1], 1.0)
    client = SmallClient(
        logits=logits[0],
        private_logits=np.eye(3, dtype=np.float32)[[0, 1, 1, 0]],
        means={"features": np.zeros((3, 1))},
    )
    assert strategy.upload(client).keys() == {"logits"}
    assert_allclose(Masters().upload(client)["accuracy"], [0.75])
