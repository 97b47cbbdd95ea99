"""What clients minimise who learn a distribution per transfer sample, by hand with its gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from knfu_by_loops import softmax
from numpy.testing import assert_allclose

from fedkd.fusion.math.fidelity import mean_kl_divergence
from fedkd.fusion.math.probabilities import softmax as softmax_of_arrays
from fedkd.fusion.registry import make_strategy

STUDENT = [[1.0, 0.5, -1.0], [0.0, 2.0, 0.0]]
LABELS = [[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]]
LOGITS = [[0.0, 2.0, 1.0], [0.5, -3.0, 0.0]]


def loss_and_gradient(strategy, targets) -> tuple[float, np.ndarray]:
    student = torch.tensor(STUDENT, requires_grad=True)
    loss = strategy.loss(student, torch.tensor(targets))
    loss.backward()
    return loss.item(), student.grad.numpy()


def cross_entropy(targets, q) -> float:
    rows = zip(targets, q, strict=True)
    return -sum(t * math.log(p) for row, own in rows for t, p in zip(row, own, strict=True)) / len(q)


def entropy(targets) -> float:
    return -sum(t * math.log(t) for row in targets for t in row if t > 0) / len(targets)


@pytest.mark.parametrize("name", ["cfd", "cronus", "dsfl", "scarlet", "selective_fd"])
def test_soft_labels_are_learned_by_cross_entropy(name) -> None:
    loss, gradient = loss_and_gradient(make_strategy(name, {}), LABELS)
    q = [softmax(row, 1.0) for row in STUDENT]
    assert loss == pytest.approx(cross_entropy(LABELS, q), rel=1e-5)
    assert_allclose(gradient, (np.array(q) - LABELS) / 2, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 10.0])
@pytest.mark.parametrize("name", ["knfu", "kta", "ktpfl", "max_confidence", "fedet", "fedmd"])
def test_teachers_are_learned_by_kl_at_a_temperature(name, temperature) -> None:
    of_logits = name in ("fedet", "fedmd")
    options = {"matching": "kl"} if name == "fedmd" else {}
    strategy = make_strategy(name, {"temperature": temperature, **options})
    loss, gradient = loss_and_gradient(strategy, LOGITS if of_logits else LABELS)
    targets = [softmax(row, temperature) for row in LOGITS] if of_logits else LABELS
    q = [softmax(row, temperature) for row in STUDENT]
    assert loss == pytest.approx(temperature**2 * (cross_entropy(targets, q) - entropy(targets)), rel=1e-4)
    assert_allclose(gradient, temperature * (np.array(q) - targets) / 2, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("name", ["knfu", "kta", "ktpfl", "max_confidence", "fedet", "fedmd"])
def test_equal_predictions_have_no_divergence(name, temperature) -> None:
    """Targets at a temperature stand for predictions at temperature 1."""
    z = np.random.default_rng(0).normal(size=(20, 5)) * 4
    targets = z if name in ("fedet", "fedmd") else softmax_of_arrays(z, temperature)
    found = make_strategy(name, {"temperature": temperature}).probabilities(targets)
    assert_allclose(found, [softmax(row, 1.0) for row in z.tolist()], atol=1e-5)
    assert mean_kl_divergence(z, found) < 1e-5
