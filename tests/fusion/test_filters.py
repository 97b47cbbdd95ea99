"""Filters: weights against loops, and their order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydantic import ValidationError
from rounds import draw_logits

from fedkd.fusion.distillation import filters
from fedkd.fusion.distillation.filters import agreement, filter_masks, mean_class_shares, relevance
from fedkd.fusion.math.probabilities import softmax
from fedkd.scenario.schema import Filter

Q = softmax(draw_logits(4, 12, 3, seed=2))
SENT = np.ones(Q.shape[:2], dtype=bool)
P = mean_class_shares(Q, SENT)


def only(*wanted: Filter, q=Q, sent=SENT) -> list[np.ndarray]:
    return list(filter_masks(wanted, q, sent))


def test_relevance_is_the_probability_of_missing_classes() -> None:
    p = [0.7, 0.2, 0.1]
    need = [1 - min(1.0, 3 * share) for share in p]
    found = relevance(Q, np.array(p))
    for m in range(4):
        for i in range(12):
            assert found[m, i] == pytest.approx(sum(need[c] * float(Q[m, i, c]) for c in range(3)))
    assert not relevance(Q, np.full(3, 1 / 3)).any()  # whoever has its share of all classes lacks none


def test_agreement_is_the_share_among_owners_of_the_class() -> None:
    votes, found = Q.argmax(axis=-1), agreement(Q, P, SENT)
    for m in range(4):
        for i in range(12):
            c = votes[m, i]
            knowing = math.fsum(P[k, c] for k in range(4) if k != m)
            agreeing = math.fsum(P[k, c] for k in range(4) if k != m and votes[k, i] == c)
            assert found[m, i] == pytest.approx(agreeing / knowing, abs=1e-12)


def test_sole_senders_and_sole_class_owners_are_not_contradicted() -> None:
    assert_array_equal(agreement(Q[:1], P[:1], SENT[:1]), np.ones((1, 12)))
    sure, sent = np.eye(2)[[[0, 0], [1, 1], [1, 1]]], np.ones((3, 2), dtype=bool)
    found = agreement(sure, mean_class_shares(sure, sent), sent)
    assert_array_equal(found, np.ones((3, 2)))


def test_equal_votes_equal_a_hand_count() -> None:
    votes, sent = Q.argmax(axis=-1), SENT.copy()
    sent[1, ::2] = sent[2, 3] = False
    found = agreement(Q, np.ones_like(P), sent)
    for m in range(4):
        for i in range(12):
            others = [k for k in range(4) if k != m and sent[k, i]]
            agreeing = sum(votes[k, i] == votes[m, i] for k in others)
            assert found[m, i] == pytest.approx(agreeing / len(others), abs=1e-12)
    equal = Filter(by="agreement", votes="equal", threshold=0.5)
    assert_array_equal(only(equal, sent=sent)[0], sent & (found >= 0.5))


def test_only_the_agreement_filter_accepts_votes() -> None:
    with pytest.raises(ValidationError, match="votes = 'equal' needs by = 'agreement'"):
        Filter(by="confidence", votes="equal")


def test_unsent_samples_have_no_vote() -> None:
    """Such a prediction stands as zeros, and would vote for the first class."""
    q, sent = np.full((3, 1, 2), 0.5), np.array([[True], [False], [False]])
    q[0, 0] = [0.9, 0.1]
    for p in (np.ones((3, 2)), mean_class_shares(q, sent)):
        assert agreement(q, p, sent)[0, 0] == 1.0, "no other client has said anything"
        contradicted = q.copy()
        contradicted[1, 0] = [0.1, 0.9]
        there = np.array([[True], [True], [False]])
        assert agreement(contradicted, p, there)[0, 0] == 0.0


@pytest.mark.parametrize(("colluders", "kept_equal"), [(1, False), (2, False), (3, False), (4, True)])
def test_colluders_defeat_votes_by_class_shares(colluders, kept_equal) -> None:
    """Ten clients, f of which say class 0 always; they pass once f − 1 of the nine others are enough."""
    honest = np.eye(10)[np.tile(np.arange(1, 10), (10 - colluders, 3))]
    hostile = np.broadcast_to(np.eye(10)[0], (colluders, 27, 10))
    q = np.concatenate([honest, hostile])
    sent = np.ones(q.shape[:2], dtype=bool)
    by_shares = only(Filter(by="agreement"), q=q, sent=sent)[0]
    equal = only(Filter(by="agreement", votes="equal"), q=q, sent=sent)[0]
    assert by_shares[:-colluders].all() and equal[:-colluders].all()
    assert by_shares[-colluders:].all(), "no honest client claims class 0"
    assert equal[-colluders:].all() == equal[-colluders:].any() == kept_equal


def test_a_quantile_is_over_sent_samples() -> None:
    sent = SENT.copy()
    sent[0, 3:] = sent[1] = False
    shares = mean_class_shares(Q, sent)
    assert_allclose(shares[0], Q[0, :3].mean(axis=0), rtol=1e-6)
    assert_allclose(shares[1], 1 / 3)


@pytest.mark.parametrize("by", filters.DEFAULT_THRESHOLDS)
def test_threshold_0_keeps_all_and_threshold_1_certain_samples(by) -> None:
    for receiver in only(Filter(by=by, threshold=0.0)):
        assert receiver.all()
    (keep,) = only(Filter(by="confidence", threshold=1.0), q=np.eye(3)[None, [0, 1]], sent=SENT[:1, :2])
    assert keep.all() and not any(receiver.all() for receiver in only(Filter(by=by, threshold=1.0)))


def test_absolute_thresholds_commute_and_quantiles_do_not() -> None:
    one, other = Filter(by="confidence", threshold=0.4), Filter(by="agreement", threshold=0.5)
    third = Filter(by="relevance", threshold=0.1)
    for forwards, backwards in zip(only(one, third, other), only(other, third, one), strict=True):
        assert_array_equal(forwards, backwards)
    assert 0 < only(one, other)[0].sum() < only(one)[0].sum()
    half = Filter(by="confidence", quantile=0.5)
    assert (only(half, other)[0] != only(other, half)[0]).any()
    assert only(half)[0].sum() == Q[..., 0].size / 2


def test_unsent_samples_are_dropped_and_empty_sets_have_no_quantile() -> None:
    none = np.zeros_like(SENT)
    for receiver in only(Filter(by="relevance", quantile=0.5), Filter(by="agreement"), sent=none):
        assert not receiver.any()
