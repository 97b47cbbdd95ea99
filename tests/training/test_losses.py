"""The losses against float64 sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedkd.training.losses import cross_entropy, kd_kl, logits_mae, logits_mse, soft_cross_entropy

RNG = np.random.default_rng(7)
LOGITS = RNG.normal(size=(6, 4)) * 3
TARGETS = RNG.dirichlet(np.ones(4), size=6)
TARGETS[0] = [0.0, 1.0, 0.0, 0.0]
TARGETS[1] = [0.5, 0.0, 0.0, 0.5]
LABELS = np.array([0, 3, 1, 1, 2, 0])


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def as_float32(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))


def kl_by_hand(t: np.ndarray, q: np.ndarray) -> float:
    total = 0.0
    for row_t, row_q in zip(t, q, strict=True):
        total += sum(a * np.log(a / b) for a, b in zip(row_t, row_q, strict=True) if a > 0)
    return total / len(t)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_kd_kl_and_its_gradient_equal_the_formula(temperature):
    student = as_float32(LOGITS).requires_grad_()
    value = kd_kl(student, as_float32(TARGETS), temperature)
    q = softmax(LOGITS / temperature)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(temperature**2 * kl_by_hand(TARGETS, q), rel=1e-5)
    value.backward()
    # d/ds T² KL(t ‖ softmax(s/T)) = T (softmax(s/T) − t), over the batch size.
    np.testing.assert_allclose(student.grad.numpy(), temperature * (q - TARGETS) / len(q), atol=1e-6)


def test_kd_kl_stays_finite_for_extreme_students():
    student = torch.tensor([[0.0, 500.0]], requires_grad=True)
    value = kd_kl(student, torch.tensor([[1.0, 0.0]]), 1.0)
    value.backward()
    assert value.item() == pytest.approx(500.0)
    assert torch.equal(student.grad, torch.tensor([[-1.0, 1.0]]))


def test_cross_entropies_equal_the_formula():
    log_q = np.log(softmax(LOGITS))
    hard = -np.mean([log_q[i, y] for i, y in enumerate(LABELS)])
    soft = -np.mean((TARGETS * log_q).sum(axis=1))
    assert cross_entropy(as_float32(LOGITS), torch.from_numpy(LABELS)).item() == pytest.approx(hard, rel=1e-5)
    assert soft_cross_entropy(as_float32(LOGITS), as_float32(TARGETS)).item() == pytest.approx(soft, rel=1e-5)


def test_logit_distances_equal_the_formula():
    other = RNG.normal(size=LOGITS.shape)
    difference = LOGITS - other
    z, t = as_float32(LOGITS), as_float32(other)
    assert logits_mae(z, t).item() == pytest.approx(np.abs(difference).mean(), rel=1e-5)
    assert logits_mse(z, t).item() == pytest.approx((difference**2).mean(), rel=1e-5)


@pytest.mark.parametrize("loss", [soft_cross_entropy, logits_mae, logits_mse, lambda s, t: kd_kl(s, t, 2.0)])
def test_targets_have_no_gradient_and_float16_is_widened(loss):
    student = as_float32(LOGITS).requires_grad_()
    targets = as_float32(TARGETS).requires_grad_()
    loss(student, targets).backward()
    assert targets.grad is None
    assert student.grad is not None
    assert loss(student.detach().bfloat16(), targets).dtype == torch.float32


@pytest.mark.parametrize("loss", [cross_entropy, soft_cross_entropy, logits_mse])
def test_complex_outputs_are_refused(loss):
    targets = torch.tensor([1, 0]) if loss is cross_entropy else torch.ones(2, 3) / 3
    with pytest.raises(TypeError, match=r"the model returns torch\.complex64; must be real numbers"):
        loss(torch.zeros(2, 3, dtype=torch.complex64), targets)
