"""Robust means against loops and against what defines them."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fedkd.fusion.math.robust import complete, geometric_median, median, trimmed_mean
from fedkd.randomness import numpy_generator


def draw(clients, samples=20, classes=4) -> np.ndarray:
    q = numpy_generator(clients, "points").dirichlet(np.ones(classes), (clients, samples))
    return q.astype(np.float32)


def exact(points: np.ndarray) -> np.ndarray:
    return geometric_median(points, tolerance=1e-12, max_iterations=20_000)


def sum_of_distances(points: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(((points - y) ** 2).sum(axis=-1, dtype=np.float64)).sum(axis=0)


@pytest.mark.parametrize("clients", [1, 2, 5, 6])
def test_the_median_equals_loops(clients) -> None:
    points = draw(clients)
    expected = [[statistics.median(points[:, i, c].tolist()) for c in range(4)] for i in range(20)]
    assert_allclose(median(points), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("clients", "trim", "cut"), [(10, 0.2, 2), (9, 0.2, 1), (4, 0.2, 0), (100, 0.29, 29)]
)
def test_the_trimmed_mean_equals_loops(clients, trim, cut) -> None:
    points = draw(clients)
    expected = [
        [statistics.fmean(sorted(points[:, i, c].tolist())[cut : clients - cut]) for c in range(4)]
        for i in range(20)
    ]
    assert_allclose(trimmed_mean(points, trim), expected, rtol=1e-6)


def test_trimming_almost_half_gives_the_median() -> None:
    points = draw(7)
    assert_allclose(trimmed_mean(points, 0.49), median(points), rtol=1e-6)


@pytest.mark.parametrize("clients", [3, 4, 11])
def test_the_geometric_median_minimises_the_sum_of_distances(clients) -> None:
    points = draw(clients).astype(np.float64)
    y = exact(points)
    least = sum_of_distances(points, y)
    generator = numpy_generator(0, "steps")
    for size in (1e-4, 1e-2, 0.3):
        for _ in range(50):
            assert (sum_of_distances(points, y + size * generator.normal(size=y.shape)) >= least - 1e-9).all()
    assert (sum_of_distances(points, points[0]) >= least - 1e-9).all()


def test_the_geometric_median_equals_loops() -> None:
    points = draw(5, samples=3, classes=3)
    for i, found in enumerate(exact(points)):
        x = points[:, i].astype(np.float64).tolist()
        y = [sum(row[c] for row in x) / 5 for c in range(3)]
        for _ in range(3000):
            weights = [1 / math.dist(row, y) for row in x]
            y = [sum(w * row[c] for w, row in zip(weights, x, strict=True)) / sum(weights) for c in range(3)]
        assert_allclose(found, y, atol=1e-8)


def test_geometric_median_of_a_triangle_is_its_fermat_point() -> None:
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])[:, None]
    assert_allclose(exact(corners), [[0.5, math.sqrt(3) / 6]], atol=1e-9)
    obtuse = np.array([[-1.0, 0.1], [0.0, 0.0], [1.0, 0.1]])[:, None]  # above 120°: the corner itself
    assert_allclose(exact(obtuse), [[0.0, 0.0]], atol=1e-6)


def test_geometric_median_leaves_a_client_that_the_mean_falls_on() -> None:
    line = np.array([0.0, 0.0, 0.0, 0.2, 0.8])[:, None, None]  # mean 0.2, median 0
    assert_allclose(exact(line), [[0.0]], atol=1e-6)


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_geometric_median_of_equal_points_is_the_point(clients) -> None:
    points = np.repeat(draw(1), clients, axis=0)
    assert_allclose(exact(points), points[0], atol=1e-7)


def test_the_geometric_median_is_the_same_in_blocks(monkeypatch) -> None:
    points = draw(5, samples=23)
    whole = exact(points)
    monkeypatch.setattr(
        "fedkd.fusion.math.robust._BLOCK", 5 * 4 * 7
    )  # seven samples a block, the last is short
    assert_allclose(exact(points), whole, atol=1e-12)


def test_the_default_tolerance_is_accurate_enough() -> None:
    points = draw(30, samples=200)
    coarse = geometric_median(points, tolerance=1e-5, max_iterations=50)
    assert_allclose(coarse, exact(points), atol=5e-4)


def test_missing_mass_is_spread_like_the_mean() -> None:
    rows = np.array([[0.0, 0.0, 0.0], [0.2, 0.0, 0.2], [0.4, 0.4, 0.0], [0.6, 0.6, 0.3]])
    mean = np.array([[0.5, 0.25, 0.25], [0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.4, 0.4, 0.2]])
    expected = [[0.5, 0.25, 0.25], [0.32, 0.3, 0.38], [0.6, 0.4, 0.0], [0.4, 0.4, 0.2]]
    assert_allclose(complete(rows, mean), expected, rtol=1e-12)
