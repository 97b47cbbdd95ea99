"""Confidence, energy and ambiguity against float64 by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fedkd.fusion.distillation.confidence import ambiguity, energy, log_confidence
from fedkd.randomness import numpy_generator

LOGITS = numpy_generator(0, "test logits").normal(0, 3, (3, 4, 3)).astype(np.float32)


def log_softmax(row) -> list[float]:
    total = math.fsum(math.exp(float(z)) for z in row)
    return [float(z) - math.log(total) for z in row]


def test_log_confidence_equals_the_formula() -> None:
    labels = np.array([0, 2, 1, 1])
    likeliest = [[max(log_softmax(row)) for row in client] for client in LOGITS]
    of_labels = [[log_softmax(row)[y] for row, y in zip(client, labels, strict=True)] for client in LOGITS]
    assert_allclose(log_confidence(LOGITS), likeliest, rtol=1e-4, atol=1e-6)
    assert_allclose(log_confidence(LOGITS, labels), of_labels, rtol=1e-4, atol=1e-6)


def test_confidences_that_round_to_one_stay_distinct() -> None:
    sure = np.array([[30.0, 0.0], [40.0, 0.0], [80.0, 0.0]], dtype=np.float32)
    confidence = log_confidence(sure)
    assert (np.exp(confidence) == 1).all()
    assert (np.diff(confidence) > 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_extreme_logits_give_finite_confidences(dtype) -> None:
    logits = np.array([[np.inf, 0, -np.inf], [-np.inf, -np.inf, -np.inf], [6e4, 6e4, 0]], dtype=dtype)
    for values in (log_confidence(logits), log_confidence(logits, np.array([2, 0, 1])), energy(logits)):
        assert np.isfinite(values).all()
    assert_allclose(log_confidence(logits), [0, -np.log(3), -np.log(2)], atol=1e-6)


def test_a_single_class_has_full_confidence() -> None:
    assert_allclose(log_confidence(np.array([[3.0]])), [0.0])


def test_energy_equals_the_formula() -> None:
    expected = [[math.log(math.fsum(math.exp(float(z)) for z in row)) for row in client] for client in LOGITS]
    assert_allclose(energy(LOGITS), expected, rtol=1e-5, atol=1e-6)


def test_ambiguity_is_the_l1_distance_to_the_one_hot() -> None:
    q = np.array([[1.0, 0.0, 0.0], [0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3]])
    one_hot = np.eye(3)[q.argmax(axis=1)]
    assert_allclose(ambiguity(q), np.abs(q - one_hot).sum(axis=1))
