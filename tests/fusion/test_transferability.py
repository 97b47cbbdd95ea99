from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import spearmanr

from fedkd.fusion.distillation.complement import (
    complement,
    complement_by_class,
    complementary_transfer_rate,
    surer,
)
from fedkd.fusion.distillation.shift import shift_cosine, shifts
from fedkd.fusion.distillation.transferability import (
    TRANSFER_PREDICTORS,
    agreement,
    best_sender_hits,
    chance_accuracy,
    off_diagonal_mean,
    predict_gains,
    rank_correlation,
)

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4))


# Complementary knowledge ----------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(size=SIZES, seed=st.integers(0, 1000))
def test_mutual_gaps_differ_by_the_accuracies(size, seed):
    clients, samples, _ = size
    right = np.random.default_rng(seed).random((clients, samples)) < 0.6
    accuracy, rho = right.mean(axis=1), complement(right)
    assert_allclose(rho - rho.T, accuracy[None, :] - accuracy[:, None], atol=1e-12)
    assert_array_equal(np.diag(rho), 0.0)


def test_a_less_accurate_client_has_complementary_knowledge():
    right = np.array([[1, 1, 1, 0], [0, 0, 0, 1]], dtype=bool)
    assert_allclose(complement(right), [[0, 0.25], [0.75, 0]])
    by_class = complement_by_class(right, np.array([0, 0, 1, 1]), 3)
    assert_allclose(by_class[0, 1], [0, 0.5, np.nan])
    assert_allclose(by_class[1, 0], [1, 0.5, np.nan])


def test_class_values_sum_to_the_total():
    draws = np.random.default_rng(3)
    right, labels = draws.random((4, 60)) < 0.5, draws.integers(0, 3, 60)
    share = np.bincount(labels, minlength=3) / 60
    assert_allclose(complement_by_class(right, labels, 3) @ share, complement(right), atol=1e-12)


def test_the_realised_share_equals_a_hand_count():
    """Client 1 has right what 0 has wrong in samples 2 and 3; a copy of 0 has learned one of them."""
    right = np.array([[1, 1, 0, 0], [0, 1, 1, 1]], dtype=bool)
    taught = np.array([[[1, 1, 0, 0], [0, 1, 1, 0]], [[1, 1, 1, 1], [0, 1, 1, 1]]], dtype=bool)
    assert_allclose(complementary_transfer_rate(right, taught), [[np.nan, 0.5], [1.0, np.nan]])


def test_the_unlabelled_measure_counts_confident_disagreement():
    q = np.array([[[0.6, 0.4], [0.6, 0.4], [0.6, 0.4]], [[0.3, 0.7], [0.45, 0.55], [0.9, 0.1]]])
    assert_allclose(surer(q.argmax(axis=-1), q.max(axis=-1)), [[0, 1 / 3], [1 / 3, 0]])
    assert_array_equal(surer(np.zeros((2, 0)), np.zeros((2, 0))), np.zeros((2, 2)))


# Predictors -----------------------------------------------------------------------------------------------


def by_loops(logits: np.ndarray, start: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Every predictor, pair by pair and sample by sample, in float64."""
    clients, samples, _ = logits.shape
    q = np.exp(logits - logits.max(axis=-1, keepdims=True))
    q /= q.sum(axis=-1, keepdims=True)
    p = (q.mean(axis=1) + 1e-6) / (1 + q.shape[-1] * 1e-6)
    moved = q.mean(axis=1) - start
    tables = {name: np.zeros((clients, clients)) for name in TRANSFER_PREDICTORS}
    for n in range(clients):
        for m in range(clients):
            tables["distance"][n, m] = -sum(a * np.log(a / b) for a, b in zip(p[n], p[m], strict=True))
            length = np.linalg.norm(moved[n]) * np.linalg.norm(moved[m])
            tables["shift"][n, m] = moved[n] @ moved[m] / length
            for i in range(samples):
                a, b = q[n, i].argmax(), q[m, i].argmax()
                tables["agreement"][n, m] += (a == b) / samples
                tables["surer"][n, m] += (a != b and q[m, i].max() > q[n, i].max()) / samples
                tables["complement"][n, m] += (a != labels[i] and b == labels[i]) / samples
    return tables


def test_predictors_equal_loops():
    draws = np.random.default_rng(0)
    logits, start = draws.normal(0, 2, (4, 30, 3)), draws.dirichlet(np.ones(3), 4)
    labels = draws.integers(0, 3, 30)
    found = predict_gains(logits.astype(np.float32), start, labels)
    expected = by_loops(logits, start, labels)
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        assert_allclose(found[name], table, atol=1e-5, err_msg=name)
    assert "complement" not in predict_gains(logits, start)


def test_progress_similarity_equals_loops():
    shift = np.array([[0.2, -0.2, 0.0], [0.4, -0.4, 0.0], [-0.1, 0.1, 0.0], [0.0, 0.0, 0.0], [1e-5, 0, 0]])
    expected = [[1, 1, -1, 0, 0], [1, 1, -1, 0, 0], [-1, -1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]
    assert_allclose(shift_cosine(shift), expected, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(size=SIZES, seed=st.integers(0, 1000), content=st.sampled_from(["equal", "overflowed", "liar"]))
def test_extreme_uploads_give_finite_values(size, seed, content):
    clients, samples, classes = size
    draws = np.random.default_rng(seed)
    logits = draws.normal(0, 1, (clients, samples, classes)).astype(np.float16)
    start = np.full((clients, classes), 1 / classes, dtype=np.float32)
    if content == "equal":
        logits[:] = 0
    elif content == "overflowed":
        logits[:] = np.where(logits > 0, np.inf, -np.inf)
    else:
        start[0] = [np.inf, -np.inf, 1e30, 0.0][:classes]
    for name, table in predict_gains(logits, start, draws.integers(0, classes, samples)).items():
        assert table.shape == (clients, clients) and np.isfinite(table).all(), name
    assert (np.abs(shifts(logits, start)) <= 1).all()


# How good they are ----------------------------------------------------------------------------------------


def test_rank_correlations_equal_scipys_without_the_diagonal():
    draws = np.random.default_rng(1)
    guess, gain = draws.normal(size=(6, 6)), np.round(draws.normal(size=(6, 6)), 1)  # with ties
    for n, found in enumerate(rank_correlation(guess, gain)):
        others = np.arange(6) != n
        assert found == pytest.approx(spearmanr(guess[n, others], gain[n, others]).statistic, abs=1e-12)


def test_constant_values_have_no_rank_correlation():
    guess = np.array([[0, 1, 2], [1, 0, np.nan], [5, 5, 0.0]])
    gain = np.array([[0, 1, 2], [1, 0, 1], [1, 2, 0.0]])
    assert_allclose(rank_correlation(guess, gain), [1, np.nan, np.nan])
    for values in (best_sender_hits, rank_correlation):
        assert np.isnan(values(np.zeros((1, 1)), np.zeros((1, 1)))).all()


def test_the_hit_rate_of_the_best_sender_equals_a_hand_count():
    gain = np.array([[9, 0.3, 0.1, 0.3], [0.2, 9, 0.1, 0.0], [0, 0, 9, 0], [1, 2, 3, 9.0]])
    guess = np.array([[0, 2, 3, 1], [2, 0, 2, 1], [1, 0, 0, 0], [0, 0, 5, 0.0]])
    assert_allclose(best_sender_hits(guess, gain), [0, 0.5, 1, 1])
    assert_allclose(chance_accuracy(gain), [2 / 3, 1 / 3, 1, 1 / 3])


def test_means_exclude_self_and_unknown_values():
    assert_allclose(
        off_diagonal_mean(np.array([[9, 1, 3], [np.nan, 9, 2], [np.nan, np.nan, 9.0]])), [2, 2, np.nan]
    )


def test_agreement_is_computed_from_logits():
    q = np.array([[[2, 1], [0, 1]], [[5, 0], [4, 1.0]]])
    assert_array_equal(agreement(q), [[1, 0.5], [0.5, 1]])
