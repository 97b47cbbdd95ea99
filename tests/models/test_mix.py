"""The assignment of models to clients."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.models.client_mix import apportion, client_models
from fedkd.scenario.schema import ClientGroup, Data, Scenario


def names(clients: int, shares: list[float]) -> str:
    groups = [
        ClientGroup(model=letter, share=share) for letter, share in zip("abcdefg", shares, strict=False)
    ]
    return "".join(g.model for g in client_models(Scenario(data=Data(clients=clients), clients=groups)))


@pytest.mark.parametrize(
    ("clients", "shares", "counts"),
    [
        (10, [2, 1, 1], [5, 3, 2]),
        (8, [2, 1, 1], [4, 2, 2]),
        (10, [1], [10]),
        (3, [1, 1], [2, 1]),
        (10, [100, 1, 1], [8, 1, 1]),
        (3, [1000, 1, 1], [1, 1, 1]),
        (2, [1, 5, 3], [0, 1, 1]),
        (10, [0.1, 0.2, 0.7], [1, 2, 7]),
        (3, [1e-3, 2e-3], [1, 2]),
        (7, [3, 2, 1], [4, 2, 1]),
    ],
)
def test_counts_are_largest_remainders_with_every_model_used(clients, shares, counts):
    assert apportion(clients, shares) == counts


@given(clients=st.integers(1, 60), shares=st.lists(st.integers(1, 500), min_size=1, max_size=6))
def test_counts_add_up_and_ignore_the_scale_of_weights(clients, shares):
    counts = apportion(clients, shares)
    assert sum(counts) == clients
    assert counts == apportion(clients, [share / 100 for share in shares])
    if clients >= len(shares):
        assert min(counts) >= 1
    if len(set(shares)) == 1:
        assert max(counts) - min(counts) <= 1


def test_models_are_interleaved():
    assert names(4, [2, 1, 1]) == "abca"
    assert names(6, [1, 1]) == "ababab"
    assert names(8, [3, 1]) == "aabaaaba"
    assert names(1, [1, 2]) == "b"


def test_every_prefix_approximates_the_mix():
    mix = names(40, [5, 3, 2])
    for stop in range(1, 41):
        for letter, share in (("a", 0.5), ("b", 0.3), ("c", 0.2)):
            assert abs(mix[:stop].count(letter) - share * stop) <= 1.0
