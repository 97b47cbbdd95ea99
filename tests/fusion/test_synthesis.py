"""Samples out of a network alone: every term of the loss by NumPy, and what the loop makes of it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from fedkd.errors import TrainingDiverged
from fedkd.fusion.streams.synthesis import (
    _generator_loss,
    adversarial_term,
    divergence_by_sample,
    draw_labels,
    statistics_distance,
    statistics_read,
    synthesise,
)
from fedkd.fusion.streams.target import Target
from fedkd.models.zoo.generator import Generator
from fedkd.randomness import seeded_torch

RECIPE = Target(
    samples=40,
    synthesis_batch_size=20,
    generator_steps=40,
    generator_lr=1e-2,
    label_weight=1.0,
    statistics_weight=1.0,
    adversarial_weight=1.0,
    divergence="kl",
    student_steps=10,
    student_lr=1e-2,
    noise=8,
    generator_width=4,
)
MET = (1, 3, 4)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32))


def softmax(z: torch.Tensor) -> np.ndarray:
    e = np.exp(z.double().numpy())
    return e / e.sum(axis=1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(axis=1)


def by_numpy(teacher: torch.Tensor, student: torch.Tensor, kind: str) -> np.ndarray:
    t, s = softmax(teacher), softmax(student)
    return kl(t, s) if kind == "kl" else 0.5 * kl(t, (t + s) / 2) + 0.5 * kl(s, (t + s) / 2)


def networks(seed: int = 3) -> tuple[nn.Module, nn.Module]:
    """Return a teacher with normalisation that has seen something, and a student; of five outputs."""
    with seeded_torch(seed):
        models = [
            nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5)) for _ in range(2)
        ]
        for _ in range(20):
            models[0](torch.randn(50, 6) + 0.5)
        models[0][3].weight.data *= 5.0  # it is sure of what it says
    return models[0], models[1]


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_divergences_equal_the_textbook_formulas(kind):
    teacher, student = drawn(7, 4, seed=1), drawn(7, 4, seed=2)
    assert_allclose(divergence_by_sample(teacher, student, kind), by_numpy(teacher, student, kind), rtol=1e-5)
    far = 100.0 * torch.eye(4)
    assert_allclose(divergence_by_sample(far, far, kind), 0.0, atol=1e-6)
    bound = {"kl": 100.0, "js": np.log(2.0)}[kind]
    assert_allclose(divergence_by_sample(far, far.roll(1, 0), kind), bound, rtol=1e-5)


@pytest.mark.parametrize("kind", ["kl", "js"])
def test_the_adversarial_term_needs_agreeing_predictions(kind):
    teacher, student = drawn(40, 3, seed=1), drawn(40, 3, seed=2).requires_grad_()
    agree = teacher.argmax(dim=1) == student.argmax(dim=1)
    assert 0 < agree.sum() < 40
    value = adversarial_term(teacher, student, kind)
    expected = -(by_numpy(teacher, student.detach(), kind) * agree.numpy()).sum() / 40
    assert_allclose(value.item(), expected, rtol=1e-5)
    value.backward()
    assert (student.grad[~agree] == 0).all() and (student.grad[agree] != 0).any(dim=1).all()


@pytest.mark.parametrize("shape", [(9, 3), (5, 3, 4, 2)])
def test_the_distance_to_running_statistics_equals_the_formula(shape):
    u, mean, variance = drawn(*shape), drawn(3, seed=4), drawn(3, seed=5).abs()
    of_channel = u.double().numpy().swapaxes(0, 1).reshape(3, -1)
    expected = np.linalg.norm(of_channel.mean(1) - mean.numpy())
    expected += np.linalg.norm(of_channel.var(1) - variance.numpy())
    assert_allclose(statistics_distance(u, mean, variance).item(), expected, rtol=1e-5)


def test_batch_statistics_are_read_within_the_block_only():
    model = nn.Sequential(
        nn.BatchNorm2d(2), nn.Flatten(), nn.BatchNorm1d(8, track_running_stats=False), nn.BatchNorm1d(8)
    )
    model.eval()
    x = drawn(6, 2, 2, 2)
    with statistics_read(model) as distances:
        model(x)
    assert len(distances) == 2
    assert_allclose(distances[0], statistics_distance(x, torch.zeros(2), torch.ones(2)))
    model(x)
    assert len(distances) == 2


def test_the_loss_is_the_weighted_sum_of_its_terms():
    teacher, student = networks()
    teacher.eval()
    x, labels, met = drawn(20, 6), torch.arange(20) % 3, torch.tensor(MET)
    recipe = replace(RECIPE, label_weight=0.5, statistics_weight=3.0, adversarial_weight=2.0)
    hidden = teacher[0](x).detach()
    distance = statistics_distance(hidden, teacher[1].running_mean, teacher[1].running_var)
    told, answered = teacher(x)[:, met].detach(), student.eval()(x)[:, met].detach()
    entropy = -np.log(softmax(told)[np.arange(20), labels]).mean()
    without = 0.5 * entropy + 3.0 * distance.item()
    assert_allclose(_generator_loss(x, labels, teacher, None, met, recipe).item(), without, rtol=1e-5)
    rival = 2.0 * adversarial_term(told, answered, "kl").item()
    found = _generator_loss(x, labels, teacher, student, met, recipe)
    assert_allclose(found.item(), without + rival, rtol=1e-5)


def test_labels_are_balanced_over_known_classes():
    labels = draw_labels(32, MET, torch.Generator().manual_seed(1))
    assert sorted(labels.bincount().tolist()) == [10, 11, 11]
    assert not torch.equal(labels, labels.sort().values)


def test_the_teacher_recognises_samples_and_is_unchanged():
    teacher, student = networks()
    teacher[0].weight.requires_grad_(False)
    before, state = deepcopy(teacher.state_dict()), torch.get_rng_state()
    made = synthesise(teacher, student, (6,), MET, RECIPE, seed=5)
    assert made.samples.shape == (40, 6) and made.logits.shape == (40, 3)
    assert set(made.labels.tolist()) == set(MET)
    right = torch.tensor(MET)[made.logits.argmax(dim=1)] == made.labels
    untrained = synthesise(teacher, networks()[1], (6,), MET, replace(RECIPE, generator_steps=0), seed=5)
    guessed = torch.tensor(MET)[untrained.logits.argmax(dim=1)] == untrained.labels
    assert right.float().mean() > 0.9 > 0.6 > guessed.float().mean()
    assert_allclose(teacher.eval()(made.samples)[:, list(MET)].detach(), made.logits, atol=1e-6)
    assert all(torch.equal(values, before[name]) for name, values in teacher.state_dict().items())
    assert [p.requires_grad for p in teacher.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in teacher.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_gives_the_same_samples():
    recipe = replace(RECIPE, generator_steps=3)
    first, second, other = (
        synthesise(*networks(), (6,), MET, recipe, seed=seed).samples for seed in (5, 5, 6)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_the_student_has_no_effect_without_the_adversarial_term():
    recipe = replace(RECIPE, adversarial_weight=0.0, generator_steps=3)
    teacher, student = networks()
    untouched = deepcopy(student.state_dict())
    first = synthesise(teacher, student, (6,), MET, recipe, seed=5)
    assert all(torch.equal(values, untouched[name]) for name, values in student.state_dict().items())
    second = synthesise(teacher, networks(seed=4)[1], (6,), MET, recipe, seed=5)
    assert torch.equal(first.samples, second.samples)


def test_nan_samples_are_refused_with_advice():
    teacher, student = networks()
    with torch.no_grad():
        teacher[3].bias[3] = torch.nan
    with pytest.raises(TrainingDiverged, match=r"a lower fusion\.generator_lr may help"):
        synthesise(teacher, student, (6,), MET, RECIPE, seed=5)


@pytest.mark.parametrize("shape", [(6,), (1, 8, 8), (3, 7, 5), (2, 1, 1)])
def test_samples_of_any_shape_have_mean_0_and_variance_1(shape):
    with seeded_torch(1):
        generator = Generator(shape, 3, noise=8, width=4)
        samples = generator(torch.randn(64, 8), torch.arange(64) % 3)
    assert samples.shape == (64, *shape)
    rows = samples.detach().double().transpose(0, 1).reshape(shape[0], -1)
    assert_allclose(rows.mean(dim=1), 0.0, atol=1e-5)
    assert_allclose(rows.var(dim=1, unbiased=False), 1.0, atol=1e-2)
