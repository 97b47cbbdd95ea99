"""Distances between clients: by-hand values, symmetry, and the scale that a Dirichlet federation leads to."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.fusion.math.distribution import smooth
from fedkd.fusion.math.similarity import (
    DIVERGENCES,
    jensen_shannon,
    kl,
    prediction_cosine,
    prediction_kl,
    symmetric_kl,
)
from fedkd.randomness import numpy_generator

P = np.array([[0.5, 0.5], [0.25, 0.75]])
FORWARD = 0.5 * math.log(4 / 3)  # ½ ln(½ / ¼) + ½ ln(½ / ¾)
BACKWARD = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)


def test_kl_equals_the_formula_with_the_receiver_first() -> None:
    assert_allclose(kl(P), [[0, FORWARD], [BACKWARD, 0]], rtol=1e-12)
    assert_allclose(DIVERGENCES["reverse"](P), [[0, BACKWARD], [FORWARD, 0]], rtol=1e-12)
    assert_allclose(symmetric_kl(P)[0, 1], (FORWARD + BACKWARD) / 2, rtol=1e-12)


def test_jensen_shannon_is_ln_2_between_disjoint_distributions() -> None:
    d = jensen_shannon(smooth(np.eye(3), 1e-12))
    assert_allclose(d, math.log(2) * (1 - np.eye(3)), atol=1e-9)
    assert_allclose(jensen_shannon(P), jensen_shannon(P).T, atol=1e-15)


def test_prediction_space_separates_equal_class_distributions() -> None:
    sharp = np.array([[0.9, 0.1], [0.1, 0.9]])
    q = np.stack([sharp, sharp[::-1]]).astype(np.float32)
    assert_allclose(kl(q.mean(axis=1, dtype=np.float64)), 0, atol=1e-12)
    assert_allclose(prediction_kl(q, 1e-12)[0, 1], 0.8 * math.log(9), rtol=1e-5)
    assert_allclose(prediction_cosine(q)[0, 1], 1 - 0.18 / 0.82, rtol=1e-5)


@pytest.mark.parametrize("distance", [lambda q: prediction_kl(q, 1e-6), prediction_cosine])
def test_prediction_distance_is_the_same_in_blocks(distance, monkeypatch) -> None:
    q = numpy_generator(0, "q").dirichlet(np.ones(5), (6, 50)).astype(np.float32)
    whole = distance(q)
    monkeypatch.setattr(
        "fedkd.fusion.math.similarity._BLOCK", 6 * 5 * 7
    )  # seven samples a block, the last is short
    assert_allclose(distance(q), whole, rtol=1e-10, atol=1e-14)
    assert_array_equal(np.diag(whole), 0)


@pytest.mark.parametrize("distance", [lambda q: prediction_kl(q, 1e-6), prediction_cosine])
@pytest.mark.parametrize("shape", [(9, 30, 6), (33, 1000, 10), (5, 77, 3)])
def test_rounding_gives_no_distance(distance, shape) -> None:
    clients, samples, classes = shape
    q = numpy_generator(0, "q").dirichlet(np.ones(classes), (1, samples)).astype(np.float32)
    assert_array_equal(distance(q.repeat(clients, axis=0)), np.zeros((clients, clients)))


def test_prediction_kl_needs_less_than_clients_squared_memory() -> None:
    clients, samples = 120, 1000
    q = numpy_generator(0, "q").dirichlet(np.ones(3), (clients, samples)).astype(np.float32)
    tracemalloc.start()
    prediction_kl(q, 1e-6)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < clients * clients * samples  # bytes; even a byte an element would be too many


@pytest.mark.parametrize(
    ("alpha", "median"), [(0.1, 6.1), (0.3, 2.5), (0.5, 1.6), (1, 0.81), (10, 0.083), (100, 0.008)]
)
def test_dirichlet_label_priors_have_the_expected_distance_scale(alpha, median) -> None:
    """At β = 10 a client keeps itself alone for α ≤ 0.5 and all ten at α = 10: this scale is why."""
    p = smooth(numpy_generator(1, "label priors").dirichlet(np.full(10, float(alpha)), 600), 1e-6)
    d = kl(p)
    assert np.median(d[~np.eye(len(d), dtype=bool)]) == pytest.approx(median, rel=0.15)
