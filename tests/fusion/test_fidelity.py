"""Fidelity metrics by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedkd.fusion.math.fidelity import agreement, mean_kl_divergence, prediction_flips

LOGITS = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]], dtype=np.float32)
GUIDANCE = np.array([[0.7, 0.2, 0.1], [0.6, 0.4, 0.0], [0.0, 0.0, 1.0]], dtype=np.float32)


def test_agreement_equals_a_hand_count() -> None:
    assert agreement(LOGITS, GUIDANCE) == pytest.approx(2 / 3)
    assert agreement(LOGITS, LOGITS) == 1.0


def test_divergence_equals_the_formula() -> None:
    total = 0.0
    for z, t in zip(LOGITS.tolist(), GUIDANCE.astype(float).tolist(), strict=True):
        normaliser = math.fsum(math.exp(v) for v in z)
        total += sum(p * math.log(p * normaliser / math.exp(v)) for p, v in zip(t, z, strict=True) if p)
    assert mean_kl_divergence(LOGITS, GUIDANCE) == pytest.approx(total / 3, rel=1e-6)
    own = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    assert mean_kl_divergence(LOGITS, own) == pytest.approx(0, abs=1e-7)
    assert mean_kl_divergence(LOGITS, GUIDANCE[[1, 2, 0]]) > mean_kl_divergence(LOGITS, GUIDANCE) >= 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_divergence_is_finite_for_huge_logits(dtype) -> None:
    sure = np.array([[np.inf, 0.0, -np.inf]], dtype=dtype)
    assert np.isfinite(mean_kl_divergence(sure, np.array([[0.0, 0.5, 0.5]], dtype=np.float32)))
    assert mean_kl_divergence(sure, np.array([[1.0, 0.0, 0.0]], dtype=np.float32)) == 0.0


def test_flips_equal_a_hand_count() -> None:
    before = np.array([True, True, False, False, False])
    after = np.array([True, False, True, True, False])
    result = prediction_flips(before, after)
    assert result == (0.4, 0.2)
    assert result.positive - result.negative == pytest.approx(after.mean() - before.mean())
    assert prediction_flips(before, before) == (0.0, 0.0)


def test_no_samples_give_nan() -> None:
    empty, none = np.empty((0, 3), dtype=np.float32), np.empty(0, dtype=bool)
    assert math.isnan(agreement(empty, empty)) and math.isnan(mean_kl_divergence(empty, empty))
    assert all(math.isnan(share) for share in prediction_flips(none, none))
