"""FD: means per label by hand, leave-one-out, and the local loss with its gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from small_views import SmallClient

from fedkd.errors import UserError
from fedkd.fusion.prototypes.fd import FD
from fedkd.fusion.prototypes.label_means import mean_by_label, mean_by_label_of_others
from fedkd.fusion.strategy import Knowledge
from fedkd.randomness import numpy_generator

# Label 0: owned by all. Label 1: by clients 0 and 2. Label 2: by client 1 alone.
COUNTS = np.array([[3, 2, 0], [1, 0, 4], [8, 5, 0]])
MEANS = numpy_generator(0, "test means").normal(0, 2, (3, 3, 3)).astype(np.float32) * (COUNTS > 0)[..., None]


def knowledge_of(means, counts, clients=None) -> Knowledge:
    clients = tuple(range(len(means))) if clients is None else clients
    return Knowledge(
        clients=clients,
        logits=None,
        samples=counts.sum(axis=1),
        label_counts=counts,
        payload={"label_logits": list(means)},
    )


def softmax(row, temperature=1.0) -> list[float]:
    exps = [math.exp(float(z) / temperature) for z in row]
    return [e / math.fsum(exps) for e in exps]


def others_by_loops(means, counts, by_count=False):
    clients, classes = counts.shape
    result, owners = np.zeros(means.shape), np.zeros(counts.shape, dtype=int)
    for n in range(clients):
        for label in range(classes):
            others = [m for m in range(clients) if m != n and counts[m, label] > 0]
            owners[n, label] = len(others)
            total = sum(float(counts[m, label]) if by_count else 1.0 for m in others)
            for m in others:
                share = (counts[m, label] if by_count else 1.0) / total
                result[n, label] += share * means[m, label].astype(np.float64)
    return result, owners


def test_alternative_averages_equal_their_formulas() -> None:
    """All who own a label, and all clients, own it or not: then those count as zeros."""
    everybody = FD(leave_one_out=False).fuse(knowledge_of(MEANS, COUNTS), {})
    total = MEANS.astype(np.float64).sum(axis=0)
    for arrays in (*everybody.personal, everybody.for_absent):
        assert_allclose(arrays["label_logits"], total / (COUNTS > 0).sum(axis=0)[:, None], rtol=1e-6)
        assert_array_equal(arrays["owners"], [3, 2, 1])

    zeros = FD(leave_one_out=False, owners_only=False).fuse(knowledge_of(MEANS, COUNTS), {})
    assert_allclose(zeros.personal[0]["label_logits"], total / 3, rtol=1e-6)
    of_others = FD(owners_only=False).fuse(knowledge_of(MEANS, COUNTS), {}).personal
    assert_allclose(of_others[0]["label_logits"], (total - MEANS[0]) / 2, rtol=1e-5, atol=1e-6)
    assert_array_equal(of_others[1]["owners"], [2, 2, 0])  # nobody else has label 2: it is not taught

    with pytest.raises(UserError, match="weight_by_count") as refused:
        FD(owners_only=False, weight_by_count=True)
    assert refused.value.key == "fusion.owners_only"


@pytest.mark.parametrize("by_count", [False, True])
def test_each_client_receives_the_mean_of_other_owners_of_a_label(by_count) -> None:
    guidance = FD(weight_by_count=by_count).fuse(knowledge_of(MEANS, COUNTS), {})
    means, owners = others_by_loops(MEANS, COUNTS, by_count)
    assert guidance.targets is None and len(guidance.personal) == 3
    for n, arrays in enumerate(guidance.personal):
        assert_allclose(arrays["label_logits"], means[n], rtol=1e-6, atol=1e-7)
        assert_array_equal(arrays["owners"], owners[n])
        assert arrays["label_logits"].dtype == np.float32
    assert_array_equal(owners, [[2, 1, 1], [2, 2, 0], [2, 1, 1]])


@pytest.mark.parametrize("alone", [True, False])
def test_older_uploads_count_less(alone) -> None:
    fresh = np.array([1.0, 0.5, 0.25])
    guidance = FD(leave_one_out=alone).fuse(replace(knowledge_of(MEANS, COUNTS), freshness=fresh), {})
    for label in range(3):
        who = [n for n in range(3) if COUNTS[n, label] and not (alone and n == 1)]
        expected = fresh[who] @ MEANS[who, label] / fresh[who].sum() if who else np.zeros(3)
        assert_allclose(guidance.personal[1]["label_logits"][label], expected, rtol=1e-5)


def test_a_single_client_has_no_teachers() -> None:
    guidance = FD().fuse(knowledge_of(MEANS[:1], COUNTS[:1]), {})
    assert_array_equal(guidance.personal[0]["owners"], 0)
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for matching in ("kl", "mse"):
        loss = FD(matching=matching).local_loss(guidance.personal[0])(
            logits, None, torch.tensor([0, 1, 2, 0])
        )
        assert loss.item() == 0
        logits.grad = None
        loss.backward()
        assert_array_equal(logits.grad, np.zeros((4, 3)))


def test_a_huge_mean_does_not_dominate_the_others() -> None:
    means = MEANS.copy()
    means[0, 0] = 1e30
    own = FD().fuse(knowledge_of(means, COUNTS), {}).personal[0]["label_logits"][0]
    assert_allclose(own, (MEANS[1, 0] + MEANS[2, 0]) / 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_overflowed_means_still_teach_their_class(dtype) -> None:
    means = np.zeros((2, 2, 2), dtype=dtype)
    means[:, 0, 0] = np.inf
    counts = np.array([[3, 0], [3, 0]])
    arrays = FD().fuse(knowledge_of(means, counts), {}).personal[0]
    logits = torch.zeros(1, 2)
    loss = FD().local_loss(arrays)(logits, None, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_local_loss_and_gradient_equal_the_formula(strength, temperature) -> None:
    arrays = FD().fuse(knowledge_of(MEANS, COUNTS), {}).personal[1]  # nobody else owns label 2
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0], [0.0, 0.0, 3.0]], requires_grad=True)
    labels = [0, 1, 2]
    expected, gradient = 0.0, np.zeros((3, 3))
    for i, label in enumerate(labels[:2]):
        teacher = softmax(arrays["label_logits"][label], temperature)
        student = softmax(logits[i].tolist(), temperature)
        kl = math.fsum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))
        expected += strength * temperature**2 * kl / 3
        gradient[i] = strength * temperature * (np.array(student) - teacher) / 3
    loss = FD(strength=strength, temperature=temperature).local_loss(arrays)(
        logits, None, torch.tensor(labels)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert_allclose(logits.grad, gradient, atol=1e-6)


def test_the_logit_mse_and_gradient_equal_the_formula() -> None:
    arrays = FD().fuse(knowledge_of(MEANS, COUNTS), {}).personal[1]
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 3.0]], requires_grad=True)
    loss = FD(matching="mse", strength=0.5).local_loss(arrays)(logits, None, torch.tensor([0, 2]))
    difference = logits.detach().numpy()[0] - arrays["label_logits"][0]
    assert loss.item() == pytest.approx(0.5 * (difference**2).sum() / 6, rel=1e-5)
    loss.backward()
    assert_allclose(logits.grad, [0.5 * 2 * difference / 6, np.zeros(3)], atol=1e-6)


def test_an_upload_is_mean_logits_per_label() -> None:
    client = SmallClient(means={"logits": MEANS[0]}, counts=COUNTS[0])
    upload = FD().upload(client)
    assert upload.keys() == {"label_logits", "label_counts"}
    assert_array_equal(upload["label_logits"], MEANS[0])
    assert (
        FD().capabilities.needs == {"gradients"}
        and FD().capabilities.uses_local_loss
        and FD().capabilities.label_counts
    )


def test_label_means_are_weighted_by_samples() -> None:
    by_hand = np.zeros((3, 3))
    for label in range(3):
        owned = sum(COUNTS[n, label] for n in range(3))
        for n in range(3):
            by_hand[label] += COUNTS[n, label] * MEANS[n, label].astype(np.float64) / owned
    assert_allclose(mean_by_label(MEANS, COUNTS), by_hand, rtol=1e-6)
    assert_array_equal(mean_by_label(MEANS, np.zeros((3, 3))), np.zeros((3, 3)))
    assert_array_equal(mean_by_label_of_others(MEANS[:1], COUNTS[:1]), np.zeros((1, 3, 3)))
