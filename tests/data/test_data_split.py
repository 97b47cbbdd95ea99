from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.data.partitions.stratified import apportion, local_split, own_test_split, stratified_choice
from fedkd.errors import UserError


def test_largest_remainders_equal_a_hand_count():
    # Quotas 1.4, 2.4, 3.2: the floors leave one unit, which the first of the two largest remainders takes.
    assert apportion(np.array([1.4, 2.4, 3.2]), 7).tolist() == [2, 2, 3]
    assert apportion(np.array([5, 0, 5]), 10).tolist() == [5, 0, 5]


@settings(max_examples=50, deadline=None)
@given(weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=20), total=st.integers(0, 10_000))
def test_apportioning_is_exact_and_within_one_unit(weights: list[float], total: int):
    w = np.array(weights) + 1e-3
    counts = apportion(w, total)
    assert counts.sum() == total
    assert np.abs(counts - total * w / w.sum()).max() < 1 + 1e-6


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=2, max_size=80),
    fraction=st.floats(0.01, 0.99),
    client=st.integers(0, 5),
)
def test_a_local_split_keeps_all_samples_and_the_label_shares(labels, fraction, client):
    y = np.array(labels)
    train, test = local_split(y, fraction, seed=1, client=client)
    assert sorted([*train, *test]) == list(range(len(y)))
    assert len(train) >= 1 and len(test) >= 1
    counts = np.bincount(y, minlength=6)
    got = np.bincount(y[test], minlength=6)
    # Within a unit of the class share, plus what singleton classes could not take.
    assert np.abs(got - counts * len(test) / len(y)).max() <= 1 + (counts > 0).sum()
    if len(test) <= np.maximum(counts - 1, 0).sum():
        assert set(y[test]) <= set(y[train])


def test_a_local_split_of_large_classes_is_exactly_stratified():
    y = np.repeat([0, 1, 2], [250, 200, 50])
    train, test = local_split(y, 0.2, seed=1, client=0)
    assert np.bincount(y[test]).tolist() == [50, 40, 10]
    assert np.bincount(y[train]).tolist() == [200, 160, 40]


def test_splits_differ_by_client_and_repeat():
    y = np.zeros(50, dtype=int)
    first = local_split(y, 0.3, seed=1, client=0)
    assert np.array_equal(first[1], local_split(y, 0.3, seed=1, client=0)[1])
    assert not np.array_equal(first[1], local_split(y, 0.3, seed=1, client=1)[1])
    assert not np.array_equal(first[1], local_split(y, 0.3, seed=2, client=0)[1])


def test_everything_or_nothing_can_be_chosen():
    y = np.array([0, 0, 1, 2])
    assert stratified_choice(y, 4, np.random.default_rng(0)).all()
    assert not stratified_choice(y, 0, np.random.default_rng(0)).any()


def test_a_split_of_a_data_set_refuses_an_empty_side():
    with pytest.raises(UserError, match="at least one of 10"):
        own_test_split(np.zeros(10, dtype=int), 0.01, 0)
