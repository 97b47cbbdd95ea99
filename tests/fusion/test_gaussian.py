"""Fusion of Gaussian predictions: rules of combination, distances, and the strategies of regression."""

from __future__ import annotations

from math import log, pi

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from fedkd.data.targets import join_outputs, split_outputs
from fedkd.fusion.distillation.gaussian import GaussianKnFu, GaussianMean
from fedkd.fusion.math.gaussian import (
    combine_gaussians,
    in_medians,
    mean_gaussian_kl,
    mean_squared_wasserstein,
)
from fedkd.fusion.strategy import Knowledge
from fedkd.training.losses import gaussian_kl, gaussian_nll, scaled_error

RULES = ("mean", "mixture", "precision")


def made(clients=4, samples=6, targets=2, seed=0):
    draw = np.random.default_rng(seed)
    mean = draw.normal(size=(clients, samples, targets))
    return mean, np.exp(draw.normal(size=mean.shape))


def weights_of(clients, receivers=3):
    return np.random.default_rng(1).dirichlet(np.ones(clients), size=receivers)


def test_equal_variances_give_one_mean_by_every_rule():
    mean, _ = made()
    weights = weights_of(4)
    found = [combine_gaussians(weights, mean, np.full_like(mean, 0.7), rule)[0] for rule in RULES]
    assert_allclose(found[0], np.einsum("rn,nmo->rmo", weights, mean), atol=1e-12)
    assert_allclose(found[1], found[0], atol=1e-12)
    assert_allclose(found[2], found[0], atol=1e-12)


def test_rules_equal_loops_by_hand():
    mean, variance = made(clients=3, samples=2, targets=1)
    weights = weights_of(3, receivers=1)
    for i in range(2):
        w, m, v = weights[0], mean[:, i, 0], variance[:, i, 0]
        bar = sum(a * b for a, b in zip(w, m, strict=True))
        by_hand = {
            "mean": (bar, sum(a * b for a, b in zip(w, v, strict=True))),
            "mixture": (bar, sum(a * (b + c**2) for a, b, c in zip(w, v, m, strict=True)) - bar**2),
            "precision": (
                sum(a * c / b for a, b, c in zip(w, v, m, strict=True)) / sum(w / v),
                1 / sum(w / v),
            ),
        }
        for rule, expected in by_hand.items():
            found = combine_gaussians(weights, mean, variance, rule)
            assert_allclose([part[0, i, 0] for part in found], expected, rtol=1e-12)


def test_precision_drops_a_client_without_knowledge():
    mean, variance = made()
    variance[2] = 1e30
    weights = np.full((1, 4), 0.25)
    others = [0, 1, 3]
    found = combine_gaussians(weights, mean, variance, "precision")[0]
    without = combine_gaussians(np.full((1, 3), 1 / 3), mean[others], variance[others], "precision")[0]
    assert_allclose(found, without, rtol=1e-12)


def test_precision_discounts_a_noisy_client():
    """Independent errors of known variance: weights by precision have the smallest expected error."""
    draw, std = np.random.default_rng(5), np.array([0.3, 0.3, 0.3, 3.0]).reshape(4, 1, 1)
    truth = draw.normal(size=(2000, 1))
    mean, variance = truth + std * draw.normal(size=(4, 2000, 1)), np.broadcast_to(std**2, (4, 2000, 1))
    weights = np.full((1, 4), 0.25)
    errors = {
        rule: np.sqrt(((combine_gaussians(weights, mean, variance, rule)[0][0] - truth) ** 2).mean())
        for rule in RULES
    }
    assert errors["precision"] == pytest.approx(1 / np.sqrt((1 / std**2).sum()), rel=0.05)
    assert errors["precision"] < 0.3 * errors["mixture"]


def test_permuted_clients_give_the_same():
    mean, variance = made()
    weights, order = weights_of(4), np.array([2, 0, 3, 1])
    for rule in RULES:
        plain = combine_gaussians(weights, mean, variance, rule)
        found = combine_gaussians(weights[:, order], mean[order], variance[order], rule)
        assert_allclose(found, plain, rtol=1e-12)


def density(x, mean, variance):
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * pi * variance)


def test_divergence_equals_quadrature():
    (m, n), (u, v) = (0.3, -1.1), (0.5, 2.0)
    x = np.linspace(-40, 40, 400_001)
    p, q = density(x, m, u), density(x, n, v)
    inside = p > 0
    by_quadrature = np.trapezoid(np.where(inside, p * np.log(np.where(inside, p / q, 1.0)), 0.0), x)
    found = mean_gaussian_kl(np.array([m, n]).reshape(2, 1, 1), np.array([u, v]).reshape(2, 1, 1))
    assert found[0, 1] == pytest.approx(by_quadrature, abs=1e-9)
    assert found[0, 1] == pytest.approx(log((v / u) ** 0.5) + (u + (m - n) ** 2) / (2 * v) - 0.5, rel=1e-12)


@pytest.mark.parametrize("distance", [mean_gaussian_kl, mean_squared_wasserstein])
def test_distances_of_equals_are_zero_and_others_positive(distance):
    mean, variance = made()
    mean[1], variance[1] = mean[0], variance[0]
    d = distance(mean, variance)
    assert d[0, 1] == d[1, 0] == 0.0
    assert (np.diag(d) == 0).all() and (d[2, [0, 1, 3]] > 0).all()


def test_medians_are_the_unit_of_distances():
    d = np.array([[0.0, 2.0, 4.0], [6.0, 0.0, 8.0], [10.0, 12.0, 0.0]])
    assert_allclose(in_medians(d), d / 7.0)
    assert (in_medians(np.zeros((3, 3))) == 0).all()
    assert in_medians(np.zeros((1, 1))).shape == (1, 1)


@pytest.mark.parametrize("head", ["gaussian", "mean"])
def test_outputs_are_split_and_joined(head):
    outputs = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    assert_allclose(join_outputs(*split_outputs(outputs, head), head), outputs, rtol=1e-6)


def test_log_variances_are_clipped():
    _, variance = split_outputs(np.array([[0.0, 1e9], [0.0, -1e9]]), "gaussian")
    assert_allclose(variance[:, 0], np.exp([8.0, -8.0]))


def knowledge(outputs):
    clients = len(outputs)
    return Knowledge(tuple(range(clients)), outputs, np.full(clients, 10))


def outputs_of(clients=4):
    return join_outputs(*made(clients=clients), "gaussian")


def test_knfu_without_distances_is_the_mean_of_all():
    shared = GaussianMean().fuse(knowledge(outputs_of()), {}).targets
    personal = GaussianKnFu(beta=0.0).fuse(knowledge(outputs_of()), {})
    assert personal.targets.shape == (4, *shared.shape)
    assert_allclose(personal.weights, 0.25)
    for own in personal.targets:
        assert_allclose(own, shared, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("divergence", ["kl", "w2"])
def test_knfu_with_a_large_beta_leaves_clients_alone(divergence):
    outputs = outputs_of()
    found = GaussianKnFu(beta=1e6, divergence=divergence).fuse(knowledge(outputs), {})
    assert_allclose(found.weights, np.eye(4), atol=1e-12)
    assert_allclose(found.targets, outputs, rtol=1e-5, atol=1e-6)


def test_one_client_gets_its_own_predictions():
    outputs = outputs_of(clients=1)
    for strategy in (GaussianMean(), GaussianKnFu()):
        targets = strategy.fuse(knowledge(outputs), {}).targets
        assert_allclose(targets.reshape(outputs.shape), outputs, rtol=1e-5, atol=1e-6)


def test_without_variances_every_rule_is_the_mean():
    means = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    for rule in RULES:
        found = GaussianMean(combine=rule).with_head("mean").fuse(knowledge(means), {}).targets
        assert_allclose(found, means.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_losses_equal_the_densities():
    draw = np.random.default_rng(2)
    outputs, guidance = draw.normal(size=(2, 7, 4))
    y = draw.normal(size=(7, 2))
    nll = gaussian_nll(torch.tensor(outputs), torch.tensor(y, dtype=torch.float32))
    mean, variance = split_outputs(outputs, "gaussian")
    expected = -np.log(density(y, mean, variance)).mean() - 0.5 * log(2 * pi)
    assert float(nll) == pytest.approx(expected, abs=1e-5)
    both = np.stack([guidance, outputs])
    d = mean_gaussian_kl(*split_outputs(both, "gaussian"))
    kl = gaussian_kl(torch.tensor(outputs), torch.tensor(guidance))
    assert float(kl) == pytest.approx(d[0, 1] / 2, rel=1e-4)
    told, spread = split_outputs(guidance, "gaussian")
    scaled = scaled_error(torch.tensor(outputs), torch.tensor(guidance))
    assert float(scaled) == pytest.approx(((mean - told) ** 2 / (2 * spread)).mean(), rel=1e-4)


def test_a_student_at_its_guidance_has_no_loss_and_no_gradient():
    guidance = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    student = guidance.clone().requires_grad_()
    loss = GaussianKnFu().loss(student, guidance)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-7
    assert student.grad is not None and student.grad.abs().max() < 1e-6
