"""`comd`: the better client teaches each sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from rounds import draw_logits, knowledge_of, softmax_by_loops
from small_views import SmallClient

from fedkd.fusion.distillation.competence import sample_losses
from fedkd.fusion.experimental.comd import CoMD, draw
from fedkd.fusion.math.probabilities import softmax
from fedkd.randomness import numpy_generator


def losses_by_loops(logits, labels=None):
    q = softmax_by_loops(logits)
    clients, samples, classes = logits.shape
    losses = np.zeros((clients, samples))
    for m in range(clients):
        for i in range(samples):
            if labels is not None:
                losses[m, i] = -math.log(q[m][i][labels[i]])
                continue
            for c in range(classes):
                others = [q[k][i][c] for k in range(clients) if k != m]
                losses[m, i] -= sum(others) / len(others) * math.log(q[m][i][c])
    return losses


def targets_by_loops(logits, losses, margin, temperature):
    q = softmax_by_loops(logits, temperature)
    clients, samples, classes = logits.shape
    targets, weights = np.zeros(logits.shape), np.zeros((clients, clients))
    for n in range(clients):
        for i in range(samples):
            teachers = [m for m in range(clients) if losses[m, i] < losses[n, i] - margin] or [n]
            for m in teachers:
                weights[n, m] += 1 / len(teachers) / samples
                for c in range(classes):
                    targets[n, i, c] += q[m][i][c] / len(teachers)
    return targets, weights


@pytest.mark.parametrize("judge", ["consensus", "labels"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), margin=st.floats(0, 2), temperature=st.floats(0.8, 4))
def test_comd_equals_loops(judge, seed, margin, temperature) -> None:
    logits = draw_logits(4, 6, 3, seed=seed)
    labels = numpy_generator(seed, "labels").integers(0, 3, 6)
    losses = losses_by_loops(logits, labels if judge == "labels" else None)
    assert_allclose(sample_losses(logits, labels if judge == "labels" else None), losses, rtol=1e-12)
    strategy = CoMD(judge=judge, margin=margin, temperature=temperature)
    guidance = strategy.fuse(knowledge_of(logits, labels=labels), {})
    targets, weights = targets_by_loops(logits, losses, margin, temperature)
    assert_allclose(guidance.targets, targets, atol=1e-6)
    assert_allclose(guidance.weights, weights, atol=1e-12)


def test_the_best_client_of_a_sample_is_its_own_teacher() -> None:
    logits, labels = draw_logits(5, 20, 4), numpy_generator(0, "labels").integers(0, 4, 20)
    q, knowledge = softmax(logits), knowledge_of(logits, labels=labels)
    best = losses_by_loops(logits, labels).argmin(axis=0)
    guidance = CoMD(judge="labels", margin=0.0).fuse(knowledge, {})
    assert_array_equal(guidance.targets[best, np.arange(20)], q[best, np.arange(20)])
    assert (guidance.targets != q).any()
    assert_array_equal(CoMD(margin=1e9).fuse(knowledge, {}).targets, q)
    alone = CoMD().fuse(knowledge_of(logits[:1]), {})
    assert_array_equal(alone.targets, q[:1])


def test_the_majority_teaches_without_labels() -> None:
    logits = np.array([[[3, 0, 0]], [[3, 0, 0]], [[0, 0, 3]]], dtype=np.float32)
    blind, seeing = CoMD(), CoMD(judge="labels")
    assert blind.capabilities.needs == frozenset() and seeing.capabilities.needs == {"transfer_labels"}
    assert_array_equal(blind.fuse(knowledge_of(logits), {}).targets.argmax(axis=-1).ravel(), [0, 0, 0])
    told = seeing.fuse(knowledge_of(logits, labels=np.array([2])), {})
    assert_array_equal(told.targets.argmax(axis=-1).ravel(), [2, 2, 2])


def test_samples_are_drawn_in_proportion_to_their_difficulty() -> None:
    lag, uniform, times = np.array([0.0, 1.0, 3.0, 0.0, 4.0]), 0.4, np.zeros(5)
    wanted = 5 * (uniform / 5 + (1 - uniform) * lag / 8)
    for seed in range(400):
        drawn = draw(lag, uniform, np.random.default_rng(seed))
        count = np.bincount(drawn, minlength=5)
        assert len(drawn) == 5 and (np.abs(count - wanted) < 1).all()
        times += count / 400
    assert_allclose(times, wanted, atol=0.06)
    for alike, gaps in ((1.0, lag), (0.3, np.zeros(5))):
        assert_array_equal(draw(gaps, alike, np.random.default_rng(0)), np.arange(5))


def test_a_client_draws_samples_by_its_own_lag() -> None:
    """It follows all targets but one: that takes all draws that do not go to everybody."""
    logits = np.array([[0, 0], [0, 0], [9, 0], [0, 0]], dtype=np.float32)
    targets = softmax(np.array([[0, 0], [0, 0], [0, 9], [0, 0]], dtype=np.float32))
    client = SmallClient(logits=logits)
    client.learn(CoMD(uniform=0.5), {"targets": targets})
    learned, drawn = client.distilled[0]
    assert_array_equal(learned, targets[drawn])
    assert len(drawn) == 4 and (drawn == 2).sum() in (2, 3)
