"""COMET and its k-means: groups that are there are found, centroids and loss agree with loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydantic import ValidationError
from rounds import (
    draw_logits,
    knowledge_of,
    mean_by_loops,
    softmax_by_loops,
)

from fedkd.fusion.distillation.comet import Comet
from fedkd.fusion.math.clustering import cluster
from fedkd.fusion.math.probabilities import softmax
from fedkd.fusion.strategy import Guidance
from fedkd.randomness import numpy_generator


def fuse(logits: np.ndarray, clients=None, **hyperparameters) -> Guidance:
    return Comet(**hyperparameters).fuse(knowledge_of(logits, clients), {})


def grouped_logits(group, samples=30, classes=4, noise=0.3) -> np.ndarray:
    """Return logits of clients that agree with their group up to noise."""
    generator = numpy_generator(0, "grouped logits")
    known = generator.normal(0, 3, (max(group) + 1, samples, classes))[list(group)]
    return (known + generator.normal(0, noise, known.shape)).astype(np.float32)


def inertia(points, group) -> float:
    total = 0.0
    for label in set(group):
        members = [point for point, own in zip(points, group, strict=True) if own == label]
        centre = [sum(column) / len(members) for column in zip(*members, strict=True)]
        total += sum((x - c) ** 2 for point in members for x, c in zip(point, centre, strict=True))
    return total


def test_comet_equals_loops_and_the_best_partition() -> None:
    logits = draw_logits(3, 4, 3)
    q = softmax_by_loops(logits)
    points = [[p for row in client for p in row] for client in q]
    best = min(itertools.product((0, 1), repeat=3), key=lambda group: inertia(points, group))
    guidance = fuse(logits, clusters=2)
    for n in range(3):
        members = [m for m in range(3) if best[m] == best[n]]
        assert_allclose(guidance.targets[n], mean_by_loops([q[m] for m in members]), rtol=1e-5)
        expected = [1 / len(members) if m in members else 0 for m in range(3)]
        assert_allclose(guidance.weights[n], expected, rtol=1e-12)


@pytest.mark.parametrize("space", ["probabilities", "logits"])
def test_existing_groups_are_found(space) -> None:
    group = np.array([0, 2, 1, 1, 0, 2, 2, 2, 0])
    logits = grouped_logits(group)
    guidance = fuse(logits, clusters=3, space=space)
    together = group[:, None] == group
    assert_allclose(guidance.weights, together / together.sum(axis=1, keepdims=True), rtol=1e-12)
    s = softmax(logits) if space == "probabilities" else logits
    for n in range(9):
        assert_allclose(guidance.targets[n], s[group == group[n]].mean(axis=0), rtol=1e-4, atol=1e-5)


def test_k_means_ends_with_every_client_at_its_nearest_centroid() -> None:
    points = draw_logits(60, 5, 4).reshape(60, -1)
    membership = cluster(points, 7)
    centroids = membership @ points
    distance = ((points[:, None] - centroids) ** 2).sum(axis=-1)
    assert_array_equal(distance.argmin(axis=1), membership.argmax(axis=0))
    assert len(membership) == 7
    assert_allclose(membership.sum(axis=1), 1)


def test_one_cluster_gives_the_mean_and_n_clusters_self_distillation() -> None:
    logits = draw_logits(5, 8, 4)
    q = softmax(logits)
    assert_allclose(fuse(logits, clusters=1).targets, np.broadcast_to(q.mean(axis=0), q.shape), atol=1e-6)
    for clusters in (5, 99):
        alone = fuse(logits, clusters=clusters)
        assert_allclose(alone.targets, q, atol=1e-6)
        assert_array_equal(alone.weights, np.eye(5))


def test_overflowed_float16_logits_stay_finite() -> None:
    coarse = np.array([[[np.inf, -np.inf]], [[np.inf, 0.0]], [[1.0, 2.0]]], dtype=np.float16)
    assert np.isfinite(fuse(coarse, space="logits", clusters=2).targets).all()


@pytest.mark.parametrize("space", ["probabilities", "logits"])
def test_the_loss_is_a_squared_distance(space) -> None:
    torch = pytest.importorskip("torch")
    student, targets = draw_logits(1, 5, 4)[0], softmax(draw_logits(1, 5, 4, seed=1)[0])
    s = softmax_by_loops(student[None])[0] if space == "probabilities" else student.tolist()
    rows = [
        sum((a - float(b)) ** 2 for a, b in zip(x, y, strict=True)) for x, y in zip(s, targets, strict=True)
    ]
    loss = Comet(space=space, strength=2.5).loss(torch.from_numpy(student), torch.from_numpy(targets))
    assert float(loss) == pytest.approx(2.5 * sum(rows) / 5, rel=1e-5)


@pytest.mark.parametrize("wrong", [{"clusters": 0}, {"strength": 0}, {"space": "features"}])
def test_wrong_hyperparameters_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        Comet(**wrong)
