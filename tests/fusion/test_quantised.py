"""Quantised soft labels against all that could be chosen, and their differences against what they cost."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.fusion.distillation.quantised import difference, put_together, quantise, renew, soft_labels
from fedkd.randomness import numpy_generator


def draw(samples=40, classes=3, seed=0) -> np.ndarray:
    q = numpy_generator(seed, "soft labels").dirichlet(np.full(classes, 0.7), samples)
    return q.astype(np.float32)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_quantisation_minimises_the_distance(bits) -> None:
    steps = 2**bits - 1
    allowed = np.array([row for row in product(range(steps + 1), repeat=3) if sum(row) == steps]) / steps
    for p, found in zip(draw(), soft_labels(quantise(draw(), bits), bits), strict=True):
        distances = np.abs(allowed - p).sum(axis=1)
        assert np.abs(found - p).sum() == pytest.approx(distances.min(), abs=1e-6)


def test_quantised_labels_equal_a_hand_computation() -> None:
    rows = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [1 / 3, 1 / 3, 1 / 3]])
    assert_array_equal(quantise(rows, 1), [[1, 0, 0], [0, 0, 1], [1, 0, 0]])
    assert_array_equal(quantise(rows, 2), [[1, 1, 1], [0, 0, 3], [1, 1, 1]])  # 1.5, 0.9, 0.6 of three steps


@pytest.mark.parametrize("bits", range(1, 9))
def test_quantised_labels_sum_to_one_and_improve_with_bits(bits) -> None:
    q = draw(200, 10)
    steps = quantise(q, bits)
    assert steps.dtype == np.uint8
    assert_array_equal(steps.sum(axis=1, dtype=np.int64), 2**bits - 1)
    assert np.abs(soft_labels(steps, bits) - q).max() <= 1 / (2**bits - 1)
    assert_array_equal(quantise(soft_labels(steps, bits), bits), steps)
    assert_allclose(soft_labels(steps, bits).sum(axis=1), 1.0, atol=1e-6)


def test_a_single_class_has_probability_1() -> None:
    assert_array_equal(quantise(np.ones((2, 1)), 8), [[255], [255]])


@pytest.mark.parametrize("bits", [1, 3, 5, 8])
def test_deltas_restore_labels_after_any_absence(bits) -> None:
    """Somebody who is told every round, and one in three."""
    version, often, rarely, told = None, None, None, 0
    for round in range(1, 10):
        labels = draw(40, 10, seed=0)
        labels[: 4 * round] = draw(40, 10, seed=round)[: 4 * round]
        version = renew(version, quantise(labels, bits), round)
        often = put_together(often, difference(version, round - 1, bits), bits)
        assert_array_equal(often, quantise(labels, bits))
        if round % 3 == 0:
            rarely = put_together(rarely, difference(version, told, bits), bits)
            assert_array_equal(rarely, often)
            told = round


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_only_changed_labels_are_sent(bits) -> None:
    first = renew(None, quantise(draw(41, 10), bits), 1)
    whole, nothing = difference(first, 0, bits), difference(first, 1, bits)
    assert whole["labels"].nbytes == -(-41 * 10 * bits // 8) and whole["changed"].nbytes == 6
    assert nothing["labels"].nbytes == 0 and nothing["changed"].nbytes == 6
    changed = first.steps.copy()
    changed[[3, 17]] = np.roll(changed[[3, 17]], 1, axis=1)
    second = renew(first, changed, 2)
    assert_array_equal(np.flatnonzero(second.since == 2), [3, 17])
    assert difference(second, 1, bits)["labels"].nbytes == -(-2 * 10 * bits // 8)
