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

from fedkd.fusion.cronus import Cronus
from fedkd.fusion.probabilities import softmax
from fedkd.randomness import numpy_generator

ROBUST = ("median", "trimmed_mean", "geometric_median")


def fuse(logits: np.ndarray, aggregate: str, clients=None, **hyperparameters) -> np.ndarray:
    strategy = Cronus(aggregate=aggregate, **hyperparameters)
    return strategy.fuse(knowledge_of(logits, clients), {}).targets


def honest(clients: int, samples=40, classes=5) -> np.ndarray:
    """Return logits of clients that know the same and differ by noise."""
    generator = numpy_generator(0, "honest clients")
    known = generator.normal(0, 2, (1, samples, classes))
    return (known + generator.normal(0, 0.3, (clients, samples, classes))).astype(np.float32)


@pytest.mark.parametrize("aggregate", ["mean", "median", "trimmed_mean"])
def test_agrees_with_loops(aggregate) -> None:
    logits = draw_logits()
    q = softmax_by_loops(logits)
    if aggregate == "mean":
        expected = mean_by_loops(q)
    else:  # of three clients a third at either end leaves the median
        middle = [[statistics.median(q[n][i][c] for n in range(3)) for c in range(3)] for i in range(4)]
        expected = [[value / sum(row) for value in row] for row in middle]
    assert_allclose(fuse(logits, aggregate, trim=0.34), expected, rtol=1e-5)


@pytest.mark.parametrize("aggregate", ROBUST)
def test_without_poison_within_noise_of_the_mean(aggregate) -> None:
    logits = honest(60)
    spread = softmax(logits).std(axis=0).max()
    difference = np.abs(fuse(logits, aggregate) - fuse(logits, "mean")).max()
    assert difference < 5 * spread / np.sqrt(60)


@pytest.mark.parametrize("aggregate", ROBUST)
@pytest.mark.parametrize("poison", ["one class", "opposite", "random", "overflow"])
def test_a_minority_of_poison_is_bounded(aggregate, poison) -> None:
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
def test_one_client_is_believed(aggregate) -> None:
    logits = draw_logits(1, 8, 4)
    assert_allclose(fuse(logits, aggregate), softmax(logits[0]), rtol=1e-5)


@pytest.mark.parametrize("aggregate", ROBUST)
def test_clients_certain_of_different_classes(aggregate) -> None:
    logits = (np.eye(3)[:, None] * 1e4).astype(np.float32)
    assert_allclose(fuse(logits, aggregate, trim=0.4), [[1 / 3] * 3], atol=1e-4)


@pytest.mark.parametrize("wrong", [{"trim": 0.5}, {"aggregate": "mode"}, {"max_iterations": 0}])
def test_hyperparameters_are_checked(wrong) -> None:
    with pytest.raises(ValidationError):
        Cronus(**wrong)
