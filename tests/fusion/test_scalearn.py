"""`scalearn`: factors of logits that lower the loss on a few labels, and that need not sum to 1."""

from __future__ import annotations

import knfu_by_loops
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from rounds import draw_logits, knowledge_of

from fedkd.fusion.distillation.scalearn import ScaLearn, learn_scales, loss_and_gradient, scaled
from fedkd.fusion.math.probabilities import log_softmax, softmax
from fedkd.randomness import numpy_generator

LABELS = numpy_generator(0, "labels").integers(0, 4, 30)


def loss_by_loops(scales, start, z, labels, counts, pull):
    clients, samples, classes = z.shape
    losses = np.zeros(clients)
    for n in range(clients):
        for i in range(samples):
            mixed = [
                sum(scales[n, m, c % scales.shape[2]] * z[m, i, c] for m in range(clients))
                for c in range(classes)
            ]
            losses[n] -= counts[n, i] * np.log(knfu_by_loops.softmax(mixed, 1.0)[labels[i]])
        losses[n] += pull * sum((a - b) ** 2 for a, b in zip(scales[n].flat, start[n].flat, strict=True))
    return losses


@pytest.mark.parametrize("per_class", [False, True])
def test_loss_and_gradient_equal_loops_and_finite_differences(per_class) -> None:
    generator, z = np.random.default_rng(0), draw_logits(3, 6, 4).astype(np.float64)
    shape = (3, 3, 4 if per_class else 1)
    start, scales = generator.normal(size=shape), generator.normal(size=shape)
    counts = generator.dirichlet(np.ones(6), 3)
    known = (start, z, LABELS[:6], counts, 0.3)
    losses, gradient = loss_and_gradient(scales, *known)
    assert_allclose(losses, loss_by_loops(scales, *known), rtol=1e-12)
    for place in np.ndindex(shape):
        moved = [scales.copy(), scales.copy()]
        moved[0][place] += 1e-5
        moved[1][place] -= 1e-5
        above, below = (loss_by_loops(there, *known)[place[0]] for there in moved)
        assert_allclose(gradient[place], (above - below) / 2e-5, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("per_class", [False, True])
def test_more_steps_never_increase_the_loss(per_class) -> None:
    z, counts = draw_logits(4, 30, 4).astype(np.float64), np.full((4, 30), 1 / 30)
    start = np.full((4, 4, 4 if per_class else 1), 0.5)
    losses = []
    for steps in (0, 1, 10, 100):
        found = learn_scales(start, z, LABELS, counts, steps=steps, lr=0.1, pull=0.01)
        losses.append(loss_by_loops(found, start, z, LABELS, counts, 0.01))
    assert (np.diff(losses, axis=0) <= 0).all() and (losses[-1] < losses[0] - 0.1).all()
    everything = learn_scales(start, z, LABELS, counts, steps=100, lr=0.1, pull=1e6)
    assert_allclose(everything, start, atol=1e-3)


def test_without_steps_or_labels_scalearn_equals_knfu_on_logits() -> None:
    logits = draw_logits(3, 30, 4)
    weights = np.array(knfu_by_loops.knfu(logits.tolist(), beta=0.3)[2])
    wanted = softmax(2 * np.tensordot(weights, logits, axes=1))
    for strategy in (ScaLearn(beta=0.3, steps=0), ScaLearn(beta=0.3, labels=0)):
        guidance = strategy.fuse(knowledge_of(logits, labels=LABELS), {})
        assert_allclose(guidance.targets, wanted, atol=1e-5)
        assert_allclose(guidance.weights, weights, atol=1e-5)


def test_a_single_client_learns_its_temperature() -> None:
    logits = draw_logits(1, 30, 4)
    told = ScaLearn(steps=300, lr=0.05, pull=0.0).fuse(knowledge_of(logits, labels=LABELS), {}).targets[0]
    factors = np.linspace(-1, 1, 401)
    everyone = np.arange(30)
    losses = [-log_softmax(f * logits[0].astype(np.float64))[everyone, LABELS].mean() for f in factors]
    assert_allclose(told, softmax(factors[int(np.argmin(losses))] * logits[0]), atol=3e-3)


def test_wrong_senders_lose_their_factor_and_may_be_inverted() -> None:
    right = 3.0 * np.eye(4)[LABELS]
    logits = np.stack([right, right[::-1], -right]).astype(np.float32)
    told = ScaLearn(beta=0.0, steps=300, pull=0.0).fuse(knowledge_of(logits, labels=LABELS), {})
    assert_array_equal(told.targets.argmax(axis=-1), np.broadcast_to(LABELS, (3, 30)))
    z = logits.astype(np.float64)
    found = learn_scales(
        np.full((3, 3, 1), 2 / 3), z, LABELS, np.full((3, 30), 1 / 30), steps=300, lr=0.01, pull=0.0
    )
    assert (found[:, 0] > 1).all() and (found[:, 2] < 0).all()
    assert scaled(found, z).shape == z.shape


def test_labelled_samples_are_drawn_once_and_other_labels_unused() -> None:
    strategy, logits = ScaLearn(labels=5, lr=0.1), draw_logits(3, 30, 4)
    known = strategy._labelled(30, 7)
    assert len(known) == 5 and (np.diff(known) > 0).all()
    unknown = np.setdiff1d(np.arange(30), known)
    others = LABELS.copy()
    others[unknown] = (others[unknown] + 1) % 4
    told = [
        strategy.fuse(knowledge_of(logits, labels=labels, seed=7, round=round), {}).targets
        for labels, round in ((LABELS, 1), (others, 2))
    ]
    assert_array_equal(told[0], told[1])
    others[known] = (others[known] + 1) % 4
    assert (strategy.fuse(knowledge_of(logits, labels=others, seed=7), {}).targets != told[0]).any()
