"""Cronus against loops, without poison, and with it."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pydantic import ValidationError
from rounds import (
    draw_logits,
    knowledge_of,
    mean_by_loops,
    softmax_by_loops,
)

from fedkd.fusion.distillation.cronus import Cronus
from fedkd.fusion.math.probabilities import softmax
from fedkd.randomness import numpy_generator

ROBUST = ("spectral", "median", "trimmed_mean", "geometric_median")


def fuse(logits: np.ndarray, aggregate: str, clients=None, **hyperparameters) -> np.ndarray:
    strategy = Cronus(aggregate=aggregate, **hyperparameters)
    return strategy.fuse(knowledge_of(logits, clients), {}).targets


def honest(clients: int, samples=40, classes=5) -> np.ndarray:
    """Return logits of clients that know the same and differ by noise."""
    generator = numpy_generator(0, "honest clients")
    known = generator.normal(0, 2, (1, samples, classes))
    return (known + generator.normal(0, 0.3, (clients, samples, classes))).astype(np.float32)


@pytest.mark.parametrize("aggregate", ["mean", "median", "trimmed_mean"])
def test_cronus_equals_loops(aggregate) -> None:
    logits = draw_logits()
    q = softmax_by_loops(logits)
    if aggregate == "mean":
        expected = mean_by_loops(q)
    else:  # of three clients a third at either end leaves the median
        middle = [[statistics.median(q[n][i][c] for n in range(3)) for c in range(3)] for i in range(4)]
        mean = mean_by_loops(q)
        expected = []
        for row, of_all in zip(middle, mean, strict=True):
            missing = max(0.0, 1 - sum(row))
            completed = [value + missing * share for value, share in zip(row, of_all, strict=True)]
            expected.append([value / sum(completed) for value in completed])
    assert_allclose(fuse(logits, aggregate, trim=0.34), expected, rtol=1e-5)


@pytest.mark.parametrize("aggregate", ROBUST)
def test_honest_uploads_give_nearly_the_mean(aggregate) -> None:
    logits = honest(60)
    spread = softmax(logits).std(axis=0).max()
    difference = np.abs(fuse(logits, aggregate) - fuse(logits, "mean")).max()
    assert difference < 5 * spread / np.sqrt(60)


@pytest.mark.parametrize("aggregate", ROBUST)
@pytest.mark.parametrize("poison", ["one class", "opposite", "random", "overflow"])
def test_a_poisoned_minority_has_bounded_influence(aggregate, poison) -> None:
    logits = honest(24)
    clean = fuse(logits, "mean")
    attack = {
        "one class": np.eye(5)[[0] * 40] * 1e6,
        "opposite": -100 * logits[0],
        "random": numpy_generator(1, "poison").normal(0, 1e4, (40, 5)),
        "overflow": np.full((40, 5), np.inf),
    }[poison].astype(np.float32)
    poisoned = np.concatenate([logits, np.repeat(attack[None], 6, axis=0)])  # a fifth of thirty
    moved = np.abs(fuse(poisoned, aggregate) - clean).max()
    assert moved < 0.15
    if poison != "overflow":  # the mean moves by up to a fifth of the way to the attacker
        assert moved < 0.75 * np.abs(fuse(poisoned, "mean") - clean).max()


@pytest.mark.parametrize("aggregate", [*ROBUST, "mean"])
def test_a_single_client_is_not_filtered(aggregate) -> None:
    logits = draw_logits(1, 8, 4)
    assert_allclose(fuse(logits, aggregate), softmax(logits[0]), rtol=1e-5)


@pytest.mark.parametrize("aggregate", ROBUST)
def test_confident_disagreeing_clients_give_uniform_targets(aggregate) -> None:
    logits = (np.eye(3)[:, None] * 1e4).astype(np.float32)
    assert_allclose(fuse(logits, aggregate, trim=0.4), [[1 / 3] * 3], atol=1e-4)


@pytest.mark.parametrize("aggregate", ROBUST)
def test_a_class_without_predictions_does_not_win(aggregate) -> None:
    """Each has 10 on its own class and 4 on a fourth, which a median divided by its sum gives 95 %."""
    logits = np.zeros((3, 1, 4), dtype=np.float32)
    logits[[0, 1, 2], 0, [0, 1, 2]], logits[:, 0, 3] = 10.0, 4.0
    q = softmax(logits)
    assert np.median(q, axis=0)[0, 3] / np.median(q, axis=0).sum() > 0.94
    targets = fuse(logits, aggregate, trim=0.34)[0]
    assert_allclose(targets[:3], 1 / 3, atol=0.003)
    assert targets[3] < 0.006


def test_weights_show_filtered_clients() -> None:
    logits = np.concatenate([honest(8), np.repeat(-100 * honest(1), 2, axis=0)])
    guidance = Cronus().fuse(knowledge_of(logits), {})
    assert guidance.weights.shape == (10, 10)
    assert (guidance.weights[:, 8:] < 0.01).all() and (guidance.weights[:, :8] > 0.05).all()


@pytest.mark.parametrize("poisoned", [0.0, 0.49])
@pytest.mark.parametrize("clients", [1, 2, 3])
def test_few_clients_work_at_the_assumed_limits(clients, poisoned) -> None:
    logits = draw_logits(clients, 8, 4)
    targets = fuse(logits, "spectral", poisoned=poisoned)
    if poisoned == 0.0 or clients < 3:  # of two nobody can say who is wrong
        assert_allclose(targets, fuse(logits, "mean"), rtol=1e-5, atol=1e-7)
    q = softmax(logits)
    assert (targets >= q.min(axis=0) - 1e-6).all() and (targets <= q.max(axis=0) + 1e-6).all()


@pytest.mark.parametrize(
    "wrong",
    [{"trim": 0.5}, {"poisoned": 0.5}, {"poisoned": -0.1}, {"aggregate": "mode"}, {"max_iterations": 0}],
)
def test_wrong_hyperparameters_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        Cronus(**wrong)
