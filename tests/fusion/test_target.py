"""TARGET: what is rehearsed by NumPy, when samples are made, and what a client keeps of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from small_views import SmallClient, SmallServer

from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.fusion.streams.target import CLASSES, SOFT_LABELS, SYNTHETIC, Target
from fedkd.fusion.weights.parameters import pack

CHEAP = {"samples": 12, "synthesis_batch_size": 4, "generator_steps": 2, "student_steps": 1}
FEATURES, OUTPUTS = 5, 4


def fused(
    strategy: Target, classes_met: tuple[int, ...] | None, samples: tuple[int, ...] = (30, 10)
) -> Guidance:
    server = SmallServer(np.zeros((0, FEATURES), np.float32), OUTPUTS, {0: "normed", 1: "normed"})
    uploads = []
    for client in range(2):
        drawn = np.random.default_rng(client)
        weights = {
            name: values + drawn.uniform(0, 1, values.shape).astype(values.dtype)
            for name, values in server.initial_weights("normed").items()
        }
        uploads.append(pack(weights))
    knowledge = Knowledge(
        clients=(0, 1),
        logits=None,
        samples=np.array(samples),
        payload={name: [upload[name] for upload in uploads] for name in uploads[0]},
        server=server,
        classes_met=classes_met,
    )
    guidance = strategy.fuse(knowledge, {})
    return guidance if classes_met is None else strategy.end_task(knowledge, guidance)


@pytest.mark.parametrize("distil", ["met", "all"])
def test_the_rehearsal_loss_equals_the_formula(distil):
    generator, classes = np.random.default_rng(1), np.array([0, 3])
    z = torch.from_numpy(generator.normal(0, 2, (6, OUTPUTS)).astype(np.float32)).requires_grad_()
    soft = generator.dirichlet(np.ones(2), 6).astype(np.float32)
    strategy = Target(strength=0.7, temperature=3.0, distil=distil)
    loss = strategy.rehearsal_loss(z, torch.from_numpy(soft), classes)
    seen = z.detach().double().numpy() / 3.0
    seen = seen[:, classes] if distil == "met" else seen
    log_q = seen - np.log(np.exp(seen).sum(axis=1, keepdims=True))
    log_q = log_q if distil == "met" else log_q[:, classes]
    assert_allclose(loss.item(), 0.7 * 9.0 * (soft * (np.log(soft) - log_q)).sum() / 6, rtol=1e-5)
    loss.backward()
    others = z.grad[:, [1, 2]]
    assert (others == 0).all() if distil == "met" else (others > 0).all()  # pushed down, or left alone


def test_within_a_task_models_are_averaged_without_synthesis():
    plain, once = fused(Target(**CHEAP), None), fused(Target(**CHEAP), None, samples=(1, 0))
    assert plain.shared.keys() == {"parameters", "counters"} and plain.memory == {} and not plain.is_personal
    first, second = (
        fused(Target(**CHEAP), None, samples=samples).shared["parameters"].astype(np.float64)
        for samples in ((10**9, 1), (1, 10**9))
    )
    assert_allclose(plain.shared["parameters"], 0.75 * first + 0.25 * second, atol=1e-6)
    assert_allclose(once.shared["parameters"], 0.5 * first + 0.5 * second, atol=1e-6)


def test_samples_of_known_classes_are_sent_at_the_end_of_a_task():
    guidance = fused(Target(temperature=2.0, **CHEAP), (0, 2))
    assert_array_equal(guidance.shared[CLASSES], [0, 2])
    assert guidance.shared[SYNTHETIC].shape == (12, FEATURES) and guidance.shared[SOFT_LABELS].shape == (
        12,
        2,
    )
    for name, values in fused(Target(**CHEAP), None).shared.items():
        assert_array_equal(guidance.shared[name], values)
    server = SmallServer(guidance.shared[SYNTHETIC], OUTPUTS)
    from fedkd.fusion.weights.parameters import unpack

    averaged = unpack(guidance.shared, server.initial_weights("normed"))
    logits = server.logits("normed", averaged)[:, [0, 2]] / 2.0
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert_allclose(guidance.shared[SOFT_LABELS], e / e.sum(axis=1, keepdims=True), atol=1e-5)


def test_unused_samples_are_not_synthesised():
    assert fused(Target(strength=0.0), (0, 2)).shared.keys() == {"parameters", "counters"}


def test_a_client_rehearses_the_newest_samples():
    strategy = Target(strength=0.5, **CHEAP)
    within, end, later = (fused(strategy, met).shared for met in (None, (0, 2), (0, 1, 2)))
    server = SmallServer(np.zeros((0, FEATURES), np.float32), OUTPUTS)
    client = SmallClient(weights=server.initial_weights("normed"))
    strategy.apply(client, within)
    assert strategy.rehearsal(client) is None and client.memory == {}
    assert_array_equal(pack(client.weights())["parameters"], within["parameters"])
    for guidance, made in ((end, end), (within, end), (later, later)):
        strategy.apply(client, guidance)
        found = strategy.rehearsal(client)
        assert_array_equal(found.samples, made[SYNTHETIC])
        assert_array_equal(found.targets, made[SOFT_LABELS])
        z = torch.zeros(12, OUTPUTS)
        wanted = strategy.rehearsal_loss(z, torch.from_numpy(found.targets), made[CLASSES])
        assert found.loss(z, torch.from_numpy(found.targets)).item() == wanted.item() > 0
