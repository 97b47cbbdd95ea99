from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.fusion.math.combine import combine
from fedkd.fusion.math.left_out import MOST_CLIENTS, leave_one_out_is_cheap, leave_one_out_shift


def test_leave_one_out_influence_equals_a_hand_computation():
    # One sample, two classes. K_0 = 0.5·(1, 0) + 0.25·(0, 1) + 0.25·(0.5, 0.5) = (0.625, 0.375);
    # without client 1 it is (2/3)·(1, 0) + (1/3)·(0.5, 0.5) = (5/6, 1/6): 0.2083 away.
    q = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[0.5, 0.5]]])
    weights = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    moved = leave_one_out_shift(weights, q)
    assert_allclose(moved[0], [0.375, 5 / 6 - 0.625, 0.125 / 3], rtol=1e-6)
    assert_array_equal(moved[1], [0.0, np.nan, 0.0])
    assert_allclose(moved[2], [0.5, 0.5, 0.0], rtol=1e-6)


def test_leaving_one_out_equals_a_new_mixture():
    rng = np.random.default_rng(3)
    q = rng.dirichlet(np.ones(4), size=(5, 7))
    weights = rng.dirichlet(np.ones(5), size=5)
    fused = combine(weights, q)
    for sender in range(5):
        rest = np.delete(weights, sender, axis=1)
        without = combine(rest / rest.sum(axis=1, keepdims=True), np.delete(q, sender, axis=0))
        apart = np.abs(fused - without).sum(axis=-1).mean(axis=-1) / 2
        assert_allclose(leave_one_out_shift(weights, q)[:, sender], apart, atol=1e-6)


def test_a_sender_equal_to_the_mixture_has_no_influence():
    q = np.tile(np.array([[0.2, 0.8]]), (3, 6, 1))
    assert_allclose(leave_one_out_shift(np.full((3, 3), 1 / 3), q), 0.0, atol=1e-7)


def test_no_samples_give_nan_and_many_clients_are_too_expensive():
    assert np.isnan(leave_one_out_shift(np.full((2, 2), 0.5), np.zeros((2, 0, 3)))).all()
    assert leave_one_out_is_cheap(np.zeros((MOST_CLIENTS, 10, 3))) and not leave_one_out_is_cheap(
        np.zeros((MOST_CLIENTS + 1, 10, 3))
    )
    assert not leave_one_out_is_cheap(np.broadcast_to(0.0, (40, 40_000, 100)))


@pytest.mark.parametrize("weight", [1.0, 1.0 - 1e-15])
def test_the_only_sender_cannot_be_left_out(weight):
    moved = leave_one_out_shift(np.array([[weight, 1.0 - weight], [0.0, 1.0]]), np.full((2, 1, 2), 0.5))
    assert np.isnan(moved[0, 0]) and not np.isnan(moved[0, 1])
