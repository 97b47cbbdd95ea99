"""The spectral filter against loops, attacks that it must undo, and the whims of an eigensolver."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.fusion.math.robust import spectral_filter
from fedkd.randomness import numpy_generator


def draw(clients: int, samples=20, classes=4) -> np.ndarray:
    q = numpy_generator(clients, "points").dirichlet(np.full(classes, 0.5), (clients, samples))
    return q.astype(np.float32)


def filtered_by_loops(points: list[list[float]], poisoned: float) -> tuple[list[float], list[float]]:
    """Return one sample's mean and weights, the direction found by powers of the covariance."""
    clients, classes = len(points), len(points[0])
    w, left = [1 / clients] * clients, 2 * poisoned
    while left > 1e-15:
        mass = sum(w)
        mu = [sum(w[n] * points[n][c] for n in range(clients)) / mass for c in range(classes)]
        away = [[points[n][c] - mu[c] for c in range(classes)] for n in range(clients)]
        covariance = np.array(
            [
                [sum(w[n] * away[n][c] * away[n][d] for n in range(clients)) for c in range(classes)]
                for d in range(classes)
            ]
        )
        if np.trace(covariance) < 1e-12:  # nobody is left who differs
            break
        for _ in range(40):  # its powers turn everything towards the largest direction
            covariance = covariance @ covariance / np.trace(covariance @ covariance)
        v = covariance @ [1.0 + 0.37 * c for c in range(classes)]
        v = (v / np.linalg.norm(v)).tolist()
        tau = [sum(row[c] * v[c] for c in range(classes)) ** 2 for row in away]
        worst = max(t for t, weight in zip(tau, w, strict=True) if weight > 0)
        taken = [weight * t / worst if weight > 0 else 0.0 for t, weight in zip(tau, w, strict=True)]
        share = min(1.0, left / sum(taken))
        w = [weight - share * part for weight, part in zip(w, taken, strict=True)]
        left = left - sum(taken) if share == 1.0 else 0.0
        w = [weight if weight >= 1e-3 * max(w) else 0.0 for weight in w]
    mass = sum(w)
    mean = [sum(w[n] * points[n][c] for n in range(clients)) / mass for c in range(classes)]
    return mean, [weight / mass for weight in w]


@pytest.mark.parametrize(("clients", "classes"), [(3, 2), (5, 2), (6, 4), (9, 3), (4, 7)])
@pytest.mark.parametrize("poisoned", [0.1, 0.2, 0.4, 0.49])
def test_the_spectral_filter_equals_loops(clients, classes, poisoned) -> None:
    points = draw(clients, samples=4, classes=classes)
    mean, weights = spectral_filter(points, poisoned)
    for i in range(4):
        expected, expected_weights = filtered_by_loops(points[:, i].astype(np.float64).tolist(), poisoned)
        assert_allclose(mean[i], expected, atol=1e-7)
        assert_allclose(weights[:, i], expected_weights, atol=1e-7)


def test_one_step_equals_a_hand_computation() -> None:
    """0.9, 0.9, 0.3 of the first class: μ = 0.7, distances 0.2, 0.2, 0.4, so τ is as 1/4, 1/4, 1."""
    points = np.array([[[0.9, 0.1]], [[0.9, 0.1]], [[0.3, 0.7]]])
    mean, weights = spectral_filter(points, 0.125)  # half of what a whole step takes, 1/3 (1/4 + 1/4 + 1)
    left = np.array([1 - 0.125, 1 - 0.125, 1 - 0.5]) / 3
    assert_allclose(weights[:, 0], left / left.sum(), rtol=1e-12)
    assert_allclose(mean[0, 0], (left * [0.9, 0.9, 0.3]).sum() / left.sum(), rtol=1e-12)


@pytest.mark.parametrize(("clients", "attackers"), [(3, 1), (5, 2), (10, 1), (10, 4), (25, 12)])
def test_attacks_up_to_the_assumed_share_are_removed(clients, attackers) -> None:
    truth = np.array([0.7, 0.2, 0.1])
    points = np.repeat(np.repeat(truth[None, None], 6, axis=1), clients, axis=0)
    points[:attackers] = draw(1, samples=6, classes=3)
    mean, weights = spectral_filter(points, attackers / clients)
    assert_allclose(mean, np.tile(truth, (6, 1)), atol=1e-9)
    assert (weights[:attackers] == 0).all()


def test_disagreeing_attackers_are_removed() -> None:
    truth = np.array([0.7, 0.1, 0.1, 0.1])
    points = np.tile(truth, (10, 1, 1))
    points[:4, 0] = np.eye(4)
    mean, _ = spectral_filter(points, 0.4)
    assert_allclose(mean[0], truth, atol=1e-6)


@pytest.mark.parametrize("clients", [1, 2, 5, 30])
def test_zero_assumed_attackers_give_the_mean(clients) -> None:
    points = draw(clients)
    mean, weights = spectral_filter(points, 0.0)
    assert_allclose(mean, points.mean(axis=0, dtype=np.float64), rtol=1e-12)
    assert_allclose(weights, 1 / clients, rtol=1e-12)


@pytest.mark.parametrize("clients", [1, 2, 7])
@pytest.mark.parametrize("poisoned", [0.2, 0.49])
def test_equal_clients_and_pairs_keep_their_weight(clients, poisoned) -> None:
    same = np.repeat(draw(1), clients, axis=0)
    for points in (same, draw(2)):
        mean, weights = spectral_filter(points, poisoned)
        assert_allclose(weights, 1 / len(points), rtol=1e-9)
        assert_allclose(mean, points.mean(axis=0, dtype=np.float64), rtol=1e-9)


@pytest.mark.parametrize("poisoned", [0.2, 0.4])
def test_sign_and_basis_of_eigenvectors_have_no_effect(monkeypatch, poisoned) -> None:
    """Clients certain of different classes spread alike in many directions: any basis of them will do."""
    points = np.concatenate([np.eye(5)[:, None], draw(5, samples=1, classes=5)], axis=1)
    points = np.concatenate([points, points[::-1, ::-1]], axis=1)
    before = spectral_filter(points, poisoned)
    assert_allclose(before[1][:, 0], 0.2, rtol=1e-9)
    solve, generator = np.linalg.eigh, numpy_generator(0, "bases")

    def another(matrices):
        values, vectors = solve(matrices)
        vectors = vectors * np.where(generator.random(values.shape) < 0.5, -1, 1)[:, None]
        for matrix in range(len(values)):
            same = np.flatnonzero(values[matrix] > values[matrix, -1] - 1e-9)
            turn, _ = np.linalg.qr(generator.normal(size=(len(same), len(same))))
            vectors[matrix][:, same] = vectors[matrix][:, same] @ turn
        return values, vectors

    monkeypatch.setattr(np.linalg, "eigh", another)
    for one, other in zip(before, spectral_filter(points, poisoned), strict=True):
        assert_allclose(other, one, atol=1e-9)


def test_the_order_of_clients_has_no_effect() -> None:
    points, order = draw(8), np.array([3, 1, 7, 0, 5, 2, 6, 4])
    mean, weights = spectral_filter(points, 0.3)
    shuffled, their_weights = spectral_filter(points[order], 0.3)
    assert_allclose(shuffled, mean, atol=1e-9)
    assert_allclose(their_weights, weights[order], atol=1e-9)


@pytest.mark.parametrize("classes", [3, 12])
def test_low_rank_uploads_ignore_order_and_impossible_classes(classes) -> None:
    points = np.repeat(draw(3, classes=classes), 2, axis=0)
    mean, weights = spectral_filter(points, 0.3)
    wider = np.insert(points, 1, 0.0, axis=2)
    for order in ([5, 3, 1, 4, 2, 0], [2, 0, 1, 5, 3, 4]):
        other, their_weights = spectral_filter(wider[order], 0.3)
        assert_allclose(np.delete(other, 1, axis=1), mean, atol=1e-9)
        assert_allclose(their_weights, weights[order], atol=1e-9)


def test_the_filter_is_the_same_in_blocks(monkeypatch) -> None:
    points = draw(5, samples=23)
    whole = spectral_filter(points, 0.2)
    monkeypatch.setattr("fedkd.fusion.math.robust._BLOCK", 5 * 4 * 7)  # seven samples a block, the last short
    for one, other in zip(whole, spectral_filter(points, 0.2), strict=True):
        assert_array_equal(other, one)
