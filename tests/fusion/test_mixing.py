"""Mixing over a graph: what is kept, and how quickly clients come to agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from fedkd.fusion.weights.mixing import (
    connected_components,
    contraction_factor,
    is_undirected,
    metropolis_weights,
    push_sum_weights,
)
from fedkd.plan.graph import Graph


def ring(clients: int, k: int = 2) -> np.ndarray:
    return Graph(clients, "k_regular", 0, k).edges(1)


@st.composite
def graphs(draw, *, mutual: bool) -> np.ndarray:
    clients = draw(st.integers(1, 9))
    heard = np.random.default_rng(draw(st.integers(0, 99))).random((clients, clients)) < draw(st.floats(0, 1))
    heard = heard | heard.T if mutual else heard
    return heard | np.eye(clients, dtype=bool)


@given(graphs(mutual=True))
@settings(max_examples=40, deadline=None)
def test_metropolis_weights_preserve_the_mean_and_never_increase_spread(heard):
    P = metropolis_weights(heard)
    assert (P >= 0).all() and (P[~heard] == 0).all()
    assert_allclose(P.sum(axis=0), 1.0, atol=1e-12)
    assert_allclose(P.sum(axis=1), 1.0, atol=1e-12)
    by_hand = np.zeros(P.shape)
    degree = [sum(row) - 1 for row in heard.tolist()]
    for n, m in zip(*np.nonzero(heard), strict=True):
        by_hand[n, m] = 0 if n == m else 1 / (1 + max(degree[n], degree[m]))
    assert_allclose(P - np.diag(np.diag(P)), by_hand, atol=1e-15)

    x = np.random.default_rng(0).normal(size=(len(P), 3))
    mean, before = x.mean(axis=0), np.linalg.norm(x - x.mean(axis=0))
    for rounds in range(1, 6):
        x = P @ x
        assert_allclose(x.mean(axis=0), mean, atol=1e-12)
        assert np.linalg.norm(x - mean) <= contraction_factor(P) ** rounds * before + 1e-12


@given(graphs(mutual=False))
@settings(max_examples=40, deadline=None)
def test_push_sum_preserves_sums_on_every_graph(heard):
    P = push_sum_weights(heard)
    assert (P[~heard] == 0).all()
    assert_allclose(P.sum(axis=0), 1.0, atol=1e-12)


def test_push_sum_reaches_the_mean_on_directed_links():
    heard = np.eye(4, dtype=bool) | np.roll(np.eye(4, dtype=bool), 1, axis=1)
    heard[0, 2] = True  # client 2 is heard by two others: rows of P do not sum to 1
    P, x, mass = push_sum_weights(heard), np.array([4.0, 0.0, -1.0, 9.0]), np.ones(4)
    assert not np.allclose(P.sum(axis=1), 1.0)
    for _ in range(200):
        x, mass = P @ x, P @ mass
    assert_allclose(x / mass, 3.0, atol=1e-9)
    assert np.ptp(mass) > 0.1


@pytest.mark.parametrize(("k", "lambda_2"), [(2, 0.8727), (4, 0.6472), (6, 0.3740)])
def test_rings_of_ten_contract_at_the_known_rates(k, lambda_2):
    assert contraction_factor(metropolis_weights(ring(10, k))) == pytest.approx(lambda_2, abs=5e-5)


@pytest.mark.parametrize("clients", [3, 4, 7, 10])
def test_the_contraction_of_a_ring_equals_the_formula(clients):
    expected = max(abs(1 + 2 * math.cos(2 * math.pi * j / clients)) / 3 for j in range(1, clients))
    assert contraction_factor(metropolis_weights(ring(clients))) == pytest.approx(expected, abs=1e-12)


def test_complete_graphs_agree_at_once_and_disconnected_ones_never():
    assert contraction_factor(metropolis_weights(np.ones((5, 5), bool))) == pytest.approx(0.0, abs=1e-12)
    apart = np.kron(np.eye(2), np.ones((3, 3))).astype(bool)
    assert contraction_factor(metropolis_weights(apart)) == pytest.approx(1.0)
    assert contraction_factor(np.ones((1, 1))) == 0.0
    assert connected_components(apart) == [(0, 1, 2), (3, 4, 5)]


def test_one_peer_graphs_agree_exactly_for_powers_of_two():
    def spread_after_log_rounds(clients: int) -> float:
        graph, X = Graph(clients, "one_peer_exponential", 0), np.eye(clients)
        for round in range(1, math.ceil(math.log2(clients)) + 1):
            P = push_sum_weights(graph.edges(round))
            assert_allclose([*P.sum(axis=1), *P.sum(axis=0)], 1.0)
            assert set(P[P > 0]) == {0.5}
            X = P @ X
        return float(np.abs(X - 1 / clients).max())

    assert spread_after_log_rounds(8) == spread_after_log_rounds(16) == 0.0
    assert spread_after_log_rounds(10) == pytest.approx(0.0375)  # some are counted twice in sixteenths


def test_random_pairs_halve_the_spread_about_once_per_round():
    """E[PᵀP] = E[P], as a matching mixes twice like once: λ₂ = ½ − 1 / (2 (N − 1))."""
    graph = Graph(10, "matching", 3)
    mean = np.mean([metropolis_weights(graph.edges(round)) for round in range(1, 2001)], axis=0)
    assert contraction_factor(mean) == pytest.approx(0.5 - 1 / 18, abs=0.03)


def test_directed_links_have_no_metropolis_weights():
    heard = Graph(5, "one_peer_exponential", 0).edges(1)
    assert not is_undirected(heard)
    with pytest.raises(ValueError, match="need an undirected graph"):
        metropolis_weights(heard)
    # Clients that only hear, or are only heard, are a part with those that they are linked to.
    assert connected_components(np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=bool)) == [(0, 1), (2,)]
