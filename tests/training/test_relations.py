"""Relations between the samples of a batch: by loops in float64, what they ignore, where there are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from fedkd.training.losses import angle_huber, distance_huber, graph_kl

DRAWS = np.random.default_rng(0)
STUDENT, TEACHER = DRAWS.normal(size=(5, 3)), DRAWS.normal(size=(5, 7))
LOSSES = [lambda s, t: graph_kl(s, t, 0.1), distance_huber, angle_huber]


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.tensor(array) for array in arrays]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / size) if size else 0.0


def huber(a: float, b: float) -> float:
    apart = abs(a - b)
    return 0.5 * apart**2 if apart < 1 else apart - 0.5


def graph_by_loops(student: np.ndarray, teacher: np.ndarray, tau: float) -> float:
    total = 0.0
    for i in range(len(student)):
        others = [j for j in range(len(student)) if j != i]
        p, q = (np.exp([cosine(rows[i], rows[j]) / tau for j in others]) for rows in (teacher, student))
        p, q = p / p.sum(), q / q.sum()
        total += float((p * np.log(p / q)).sum())
    return total / len(student)


def test_relation_losses_equal_loops() -> None:
    found = [float(loss(*tensors(STUDENT, TEACHER))) for loss in LOSSES]
    assert found[0] == pytest.approx(graph_by_loops(STUDENT, TEACHER, 0.1), rel=1e-5)
    number = range(5)

    def distances(rows: np.ndarray) -> np.ndarray:
        d = np.array([[np.linalg.norm(rows[i] - rows[j]) for j in number] for i in number])
        return d / d[d > 0].mean()

    s, t = distances(STUDENT), distances(TEACHER)
    assert found[1] == pytest.approx(
        np.mean([huber(s[i, j], t[i, j]) for i in number for j in number]), rel=1e-5
    )
    angles = [
        huber(*(cosine(rows[i] - rows[j], rows[k] - rows[j]) for rows in (STUDENT, TEACHER)))
        for i in number
        for j in number
        for k in number
    ]
    assert found[2] == pytest.approx(np.mean(angles), rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_relation_losses_ignore_rotation_and_scale(loss) -> None:
    turn, _ = np.linalg.qr(DRAWS.normal(size=(7, 7)))
    for same in (TEACHER, 3.5 * TEACHER, TEACHER @ turn):
        assert float(loss(*tensors(same, TEACHER))) == pytest.approx(0.0, abs=1e-6)
    assert float(loss(*tensors(STUDENT, TEACHER))) > 1e-3


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rows", [STUDENT[:1], np.zeros((4, 3)), np.vstack([STUDENT[:2], np.zeros((2, 3))])])
def test_single_and_zero_samples_have_finite_gradients(loss, rows) -> None:
    student = torch.tensor(rows, requires_grad=True)
    value = loss(student, torch.tensor(TEACHER[: len(rows)]))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all()
    assert len(rows) > 1 or value.item() == 0.0


def test_gradients_equal_finite_differences() -> None:
    """To a hundredth of what they come to along themselves, as losses are float32."""
    ways = np.random.default_rng(1).normal(size=(10, *STUDENT.shape))
    for loss in LOSSES:
        student = torch.tensor(STUDENT, requires_grad=True)
        loss(student, torch.tensor(TEACHER)).backward()
        for way in ways:
            ends = [float(loss(*tensors(STUDENT + step * way, TEACHER))) for step in (3e-3, -3e-3)]
            scale = np.linalg.norm(student.grad) * np.linalg.norm(way)
            assert_allclose((student.grad.numpy() * way).sum(), (ends[0] - ends[1]) / 6e-3, atol=0.01 * scale)
