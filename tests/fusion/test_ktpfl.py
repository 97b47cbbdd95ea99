"""KT-pFL against loops and autograd, its limits, and coefficients that outlive a client's absence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydantic import ValidationError
from rounds import (
    draw_logits,
    knowledge_of,
    softmax_by_loops,
)

from fedkd.fusion.distillation.ktpfl import KTpFL, mse_gradient, step
from fedkd.fusion.math.probabilities import softmax
from fedkd.fusion.math.similarity import gram
from fedkd.fusion.strategy import Guidance
from fedkd.randomness import numpy_generator


def fuse(logits: np.ndarray, clients=None, memory=None, **hyperparameters) -> Guidance:
    return KTpFL(**hyperparameters).fuse(knowledge_of(logits, clients), memory or {})


def improved_by_loops(c, q, rho, lr, tau):
    """Return the next coefficients of nested lists: gradient, implicit penalty, softmax."""
    clients, samples, classes = len(q), len(q[0]), len(q[0][0])
    result = []
    for n in range(clients):
        stepped = []
        for m in range(clients):
            gradient = 0.0
            for i in range(samples):
                for k in range(classes):
                    mix = sum(c[n][j] * q[j][i][k] for j in range(clients))
                    gradient += 2 * (mix - q[n][i][k]) * q[m][i][k] / (samples * classes)
            pull = 2 * lr * rho / clients
            stepped.append((c[n][m] - lr * gradient + pull / clients) / (1 + pull))
        powers = [math.exp(value / tau) for value in stepped]
        result.append([power / sum(powers) for power in powers])
    return result


@pytest.mark.parametrize(("rho", "lr", "tau", "temperature"), [(0.7, 10, 0.2, 10), (0.0, 2.0, 1.0, 1.0)])
def test_ktpfl_equals_loops_over_rounds(rho, lr, tau, temperature) -> None:
    c = [[1 / 3] * 3 for _ in range(3)]
    memory: dict[str, np.ndarray] = {}
    for round in range(3):
        logits = draw_logits(3, 4, 3, seed=round)
        q = softmax_by_loops(logits, temperature)
        c = improved_by_loops(c, q, rho, lr, tau)
        guidance = fuse(
            logits, memory=memory, rho=rho, lr=lr, coefficient_temperature=tau, temperature=temperature
        )
        memory = guidance.memory
        assert_allclose(guidance.weights, c, rtol=1e-5)
        mixed = [
            [[sum(c[n][m] * q[m][i][k] for m in range(3)) for k in range(3)] for i in range(4)]
            for n in range(3)
        ]
        assert_allclose(guidance.targets, mixed, rtol=1e-5)


def objective(torch, c, q, rho):
    """Return the sum over rows of MSE(q_n, Σ c_nm q_m) + ρ · MSE(c_n, 1/N)."""
    mse = torch.nn.functional.mse_loss
    mixed = torch.einsum("nm,mic->nic", c, q)
    uniform = torch.full_like(c[0], 1 / len(c))
    return sum(mse(mixed[n], q[n]) + rho * mse(c[n], uniform) for n in range(len(c)))


def drawn_coefficients(clients: int) -> np.ndarray:
    return numpy_generator(0, "coefficients").dirichlet(np.ones(clients), clients)


def test_the_gradient_equals_autograd() -> None:
    torch = pytest.importorskip("torch")
    q, c = softmax(draw_logits(6, 20, 4)), drawn_coefficients(6)
    tensor = torch.tensor(c, requires_grad=True)
    objective(torch, tensor, torch.tensor(q, dtype=torch.float64), 0.0).backward()
    assert_allclose(mse_gradient(c, gram(q), 80), tensor.grad.numpy(), rtol=1e-9, atol=1e-14)


def test_a_small_step_approximates_gradient_descent() -> None:
    torch = pytest.importorskip("torch")
    q, c = softmax(draw_logits(6, 20, 4)), drawn_coefficients(6)
    tensor = torch.tensor(c, requires_grad=True)
    objective(torch, tensor, torch.tensor(q, dtype=torch.float64), 0.7).backward()
    moved = step(c, gram(q), 80, rho=0.7, lr=1e-5) - c
    assert_allclose(moved, -1e-5 * tensor.grad.numpy(), rtol=1e-4, atol=1e-11)


def test_the_penalty_takes_an_implicit_step() -> None:
    q, c = softmax(draw_logits(6, 20, 4)), drawn_coefficients(6)
    after = step(c, gram(q), 80, rho=3.0, lr=5.0)
    expected = c - 5.0 * (mse_gradient(c, gram(q), 80) + 2 * 3.0 / 6 * (after - 1 / 6))
    assert_allclose(after, expected, rtol=1e-10)


@pytest.mark.parametrize("rho", [1e9, 1e300, 1.7e308])
def test_infinite_rho_gives_uniform_weights(rho) -> None:
    logits, memory = draw_logits(5, 8, 4), {}
    q = softmax(logits, 1.0)
    for _ in range(5):
        guidance = fuse(logits, memory=memory, rho=rho, temperature=1.0, lr=100.0)
        memory = guidance.memory
        assert_allclose(guidance.weights, 0.2, rtol=1e-6)
        assert_allclose(guidance.targets, np.broadcast_to(q.mean(axis=0), q.shape), rtol=1e-5)


def test_unpenalised_coefficients_favour_similar_clients() -> None:
    group = np.array([0, 0, 0, 1, 1])
    logits = (draw_logits(2, 30, 4, spread=2)[group] + draw_logits(5, 30, 4, spread=0.2)).astype(np.float32)
    memory: dict[str, np.ndarray] = {}
    for _ in range(10):
        guidance = fuse(logits, memory=memory, rho=0.0, temperature=1.0, lr=5.0)
        memory = guidance.memory
    together = np.where(group[:, None] == group, guidance.weights, 0.0).sum(axis=1)
    assert (together > 0.9).all()


def test_coefficients_survive_partial_participation() -> None:
    """Three clients, then two of them, then a new one; every number by hand but the step itself."""
    options = {"rho": 0.1, "lr": 3.0, "temperature": 1.0}
    strategy = KTpFL(**options)
    logits = draw_logits(5, 8, 4)
    q = softmax(logits, 1.0)

    first = fuse(logits[[1, 2, 4]], (1, 2, 4), **options)
    c = first.weights
    assert first.memory["clients"].tolist() == [1, 2, 4]
    assert_array_equal(first.memory["coefficients"], c)

    second = fuse(logits[[1, 4]], (1, 4), memory=first.memory, **options)
    before = c[np.ix_([0, 2], [0, 2])]
    mass = before.sum(axis=1, keepdims=True)
    after = strategy._improve(before / mass, gram(q[[1, 4]]), 32)
    assert_allclose(second.weights, after, rtol=1e-9)
    expected = c.copy()
    expected[np.ix_([0, 2], [0, 2])] = mass * after
    assert_allclose(second.memory["coefficients"], expected, rtol=1e-9)

    third = fuse(logits[[0, 4]], (0, 4), memory=second.memory, **options)
    assert third.memory["clients"].tolist() == [0, 1, 2, 4]
    grown = np.full((4, 4), 0.25)
    grown[1:, 1:] = expected * 0.75
    before = grown[np.ix_([0, 3], [0, 3])]
    mass = before.sum(axis=1, keepdims=True)
    assert_allclose(
        third.weights, strategy._improve(before / mass, gram(q[[0, 4]]), 32), rtol=1e-6, atol=1e-12
    )
    assert_allclose(third.memory["coefficients"].sum(axis=1), 1.0, rtol=1e-12)


def test_a_single_client_is_its_own_teacher() -> None:
    logits = draw_logits(1, 8, 4)
    assert_allclose(fuse(logits, temperature=1.0).targets, softmax(logits), rtol=1e-6)


def test_a_client_without_weight_on_participants_restarts_uniformly() -> None:
    memory = {
        "clients": np.array([0, 1, 2]),
        "coefficients": np.array([[0, 0, 1.0], [0, 0, 1.0], [0, 0, 1.0]]),
    }
    guidance = fuse(draw_logits(2, 8, 4), (0, 1), memory=memory, rho=1e9)
    assert_allclose(guidance.weights, 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"rho": -1}, {"lr": 0}, {"temperature": 0}, {"coefficient_temperature": 0}]
)
def test_wrong_hyperparameters_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        KTpFL(**wrong)
