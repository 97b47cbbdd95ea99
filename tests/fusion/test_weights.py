"""Weights of neighbours: softmax of distances, nearest and thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.fusion import Knowledge
from fedkd.fusion.math.neighbour_weights import (
    effective_neighbours,
    effectiveness,
    log_prior,
    matched_beta,
    nearest,
    within,
)

D = np.array([[0.0, 1.0, 2.0, 2.0], [3.0, 0.0, 1.0, 2.0], [1.0, 1.0, 0.0, 1.0], [4.0, 2.0, 3.0, 0.0]])


def test_effectiveness_equals_the_formula() -> None:
    row = [1, math.exp(-0.5), math.exp(-1), math.exp(-1)]
    assert_allclose(effectiveness(D, 0.5)[0], np.array(row) / sum(row), rtol=1e-12)


def test_effectiveness_does_not_underflow() -> None:
    far = D + 1e5 * (1 - np.eye(4))
    assert_array_equal(effectiveness(far, 10.0), np.eye(4))
    shifted = effectiveness(D, 1.0, log_prior=np.full(4, -1e4))  # a common factor cancels
    assert_allclose(shifted, effectiveness(D, 1.0), rtol=1e-10)


def test_nearest_keeps_self_and_ties() -> None:
    assert_array_equal(nearest(D, 0), np.eye(4))
    expected = [[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1], [0, 1, 0, 1]]  # row 2: three others tie
    assert_array_equal(nearest(D, 1), expected)
    assert_array_equal(nearest(D, 2)[0], [1, 1, 1, 1])  # the second nearest is a tie
    assert nearest(D, 3).all() and nearest(D, 10).all()


def test_nearest_keeps_self_among_identical_clients() -> None:
    assert nearest(np.zeros((3, 3)), 1).all()


def test_thresholds_apply_to_different_clients_only() -> None:
    between = np.sort(D[~np.eye(4, dtype=bool)])  # 1 1 1 1 1 2 2 2 2 3 3 4
    assert np.median(between) == 2
    assert_array_equal(within(D, 0.5, "median"), (D <= 1) | np.eye(4, dtype=bool))
    assert_array_equal(within(D, 0.0, "quantile"), D <= 1)
    assert within(D, 1.0, "quantile").all()
    assert_array_equal(within(D, 0.1, "median"), np.eye(4))


def test_the_log_prior_is_size_times_decay() -> None:
    knowledge = Knowledge((0, 1, 2), None, np.array([4, 1, 0]), age=np.array([0, 2, 1]))
    assert_allclose(np.exp(log_prior(knowledge, 0.5, by_size=True)), [4, 0.25, 0.5])
    assert_array_equal(log_prior(knowledge, None), [0, 0, 0])  # no decay: age does not count


@pytest.mark.parametrize("count", [1, 2, 5])
def test_effective_neighbours_counts_equal_weights(count) -> None:
    weights = np.zeros((1, 5))
    weights[0, :count] = 1 / count
    assert effective_neighbours(weights)[0] == pytest.approx(count, rel=1e-12)


@pytest.mark.parametrize("perplexity", [1.01, 2.0, 3.7])
def test_every_receiver_has_the_set_number_of_neighbours(perplexity) -> None:
    distances = D * np.array([[1.0], [1e-3], [30.0], [5.0]])  # whatever the scale
    distances[2] += [0.1, 0.2, 0.0, 0.3]  # three equally near ones would not become fewer
    beta = matched_beta(distances, perplexity)
    assert beta.shape == (4, 1) and (np.diff(beta[:, 0]) != 0).all()
    assert_allclose(effective_neighbours(effectiveness(distances, beta)), perplexity, rtol=1e-6)
    near = np.array([[1, 1, 0, 0]] * 2 + [[0, 0, 1, 1]] * 2, dtype=bool)
    kept = effectiveness(distances, matched_beta(distances, perplexity, keep=near), keep=near)
    assert_allclose(effective_neighbours(kept), min(perplexity, 2), rtol=1e-6)


def test_impossible_numbers_of_neighbours_are_refused() -> None:
    assert_array_equal(matched_beta(D, 4.0), np.zeros((4, 1)))  # all there are, and more
    assert_array_equal(matched_beta(D, 9.0), np.zeros((4, 1)))
    alike = effectiveness(np.zeros((3, 3)), matched_beta(np.zeros((3, 3)), 2.0))
    assert_array_equal(alike, np.full((3, 3), 1 / 3))  # nobody is nearer than anybody
    assert_array_equal(matched_beta(np.zeros((1, 1)), 1.0), [[0.0]])
