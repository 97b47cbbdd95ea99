"""FedTGP: the server's loss and its margin by loops, and prototypes that come apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from small_views import SmallClient, SmallServer

from fedkd.fusion.prototypes.fedtgp import FedTGP, margin_of, server_loss
from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.randomness import numpy_generator

OWNED = np.array([[1, 1, 0, 0], [1, 0, 0, 1], [0, 1, 0, 1]], dtype=np.uint8)  # nobody owns class 2
CENTRES = 2 * np.eye(4, 5)
HEARD = (CENTRES + numpy_generator(0, "fedtgp").normal(0, 0.2, (3, 4, 5))).astype(np.float32)
HEARD *= OWNED[..., None]


def fuse(strategy: FedTGP, memory=None, owned=OWNED) -> Guidance:
    knowledge = Knowledge(
        clients=tuple(range(3)),
        logits=None,
        samples=np.ones(3, dtype=np.int64),
        label_counts=owned,
        payload={"prototypes": list(HEARD)},
        server=SmallServer(np.zeros((1, 5), np.float32), 4, {}),
    )
    return strategy.fuse(knowledge, memory or {})


def by_loops(learned: np.ndarray, heard: np.ndarray, classes: list[int], margin: float) -> float:
    losses = []
    for own, label in zip(heard, classes, strict=True):
        scores = []
        for c, prototype in enumerate(learned):
            distance = math.sqrt(sum((float(f) - float(p)) ** 2 for f, p in zip(own, prototype, strict=True)))
            scores.append(-(distance + (margin if c == label else 0.0)))
        losses.append(math.log(sum(math.exp(score) for score in scores)) - scores[label])
    return sum(losses) / len(losses)


def test_the_server_loss_equals_the_formula() -> None:
    learned = numpy_generator(1, "fedtgp").normal(0, 1, (4, 5))
    heard, classes = HEARD[0, :2], [0, 1]
    found = server_loss(torch.tensor(learned), torch.tensor(heard), torch.tensor(classes), 0.7)
    assert found.item() == pytest.approx(by_loops(learned, heard, classes, 0.7), rel=1e-6)


def test_equal_prototype_and_mean_have_a_finite_gradient() -> None:
    learned = torch.zeros(2, 3, requires_grad=True)
    server_loss(learned, torch.zeros(1, 3), torch.tensor([0]), 1.0).backward()
    assert learned.grad is not None and learned.grad.isfinite().all()


def test_margins_equal_the_paper_and_the_authors_code() -> None:
    heard = np.array([[0.0], [2.0], [4.0], [11.0]], dtype=np.float32)  # means 1, 4 and 11
    classes = np.array([3, 3, 0, 5])
    assert margin_of(heard, classes, "farthest") == 10.0
    assert margin_of(heard, classes, "nearest") == 7.0  # of 11 to 4; 1 and 4 have each other at 3
    assert margin_of(heard[:2], classes[:2], "farthest") == 0.0


def test_prototypes_converge_to_their_means_and_persist() -> None:
    strategy, memory = FedTGP(server_lr=0.1), {}
    for _ in range(3):
        guidance = fuse(strategy, memory)
        memory = guidance.memory
    learned = guidance.shared["prototypes"]
    for n, c in zip(*np.nonzero(OWNED), strict=True):
        distances = np.linalg.norm(learned[[0, 1, 3]] - HEARD[n, c], axis=1)
        assert [0, 1, 3][distances.argmin()] == c
    assert_array_equal(guidance.shared["owners"] > 0, [True, True, False, True])


def test_a_received_class_stays_known() -> None:
    first = fuse(FedTGP(server_epochs=1))
    nobody = OWNED * np.array([0, 1, 0, 1], dtype=np.uint8)
    second = fuse(FedTGP(server_epochs=0), first.memory, owned=nobody)
    assert second.shared["owners"][0] == first.shared["owners"][0] > 0
    assert_allclose(second.shared["prototypes"], first.shared["prototypes"], atol=1e-7)


def test_the_local_loss_equals_fedprotos() -> None:
    guidance = fuse(FedTGP(server_epochs=0)).shared
    features = torch.tensor(HEARD[0, :3], requires_grad=True)
    loss = FedTGP(strength=2.0).local_loss(guidance)(torch.zeros(3, 4), features, torch.tensor([0, 1, 2]))
    away = (HEARD[0, :2] - guidance["prototypes"][:2]).astype(np.float64)  # class 2 was never heard
    assert loss.item() == pytest.approx(2.0 * (away**2).sum() / 15, rel=1e-5)


def test_an_upload_names_owned_classes_without_counts() -> None:
    client = SmallClient(means={"features": HEARD[0]}, counts=np.array([9, 4, 0, 0]))
    assert_array_equal(FedTGP().upload(client)["owned"], [1, 1, 0, 0])
    assert not FedTGP().capabilities.label_counts
