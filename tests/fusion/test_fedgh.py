"""FedGH: the server's head step by step in float64, and who puts it on."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small_views import SmallClient, SmallServer

from fedkd.errors import UserError
from fedkd.fusion.prototypes.fedgh import FedGH
from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.randomness import numpy_generator

OWNED = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0]], dtype=np.uint8)  # nobody owns class 2
MEANS = numpy_generator(0, "fedgh").normal(0, 1, (3, 3, 4)).astype(np.float32) * OWNED[..., None]


def fuse(strategy: FedGH, memory=None, means=MEANS, owned=OWNED) -> Guidance:
    knowledge = Knowledge(
        clients=tuple(range(len(means))),
        logits=None,
        samples=np.ones(len(means), dtype=np.int64),
        label_counts=owned,
        payload={"prototypes": list(means)},
        server=SmallServer(np.zeros((1, 4), np.float32), 3, {}),
    )
    return strategy.fuse(knowledge, memory or {})


def test_the_head_takes_sgd_steps_on_means_of_owned_classes() -> None:
    start = fuse(FedGH(server_epochs=0))
    found = fuse(FedGH(server_epochs=2, server_lr=0.3), start.memory)
    weight, bias = (np.array(start.shared[name], dtype=np.float64) for name in ("head_weight", "head_bias"))
    for _ in range(2):
        for n, c in [(0, 0), (0, 1), (1, 0), (2, 1)]:
            z = weight @ MEANS[n, c].astype(np.float64) + bias
            error = np.exp(z - z.max()) / np.exp(z - z.max()).sum() - np.eye(3)[c]
            weight, bias = weight - 0.3 * np.outer(error, MEANS[n, c]), bias - 0.3 * error
    assert_allclose(found.shared["head_weight"], weight, atol=1e-6)
    assert_allclose(found.shared["head_bias"], bias, atol=1e-6)


def test_the_head_persists_and_learns_the_classes() -> None:
    memory, strategy = {}, FedGH(server_epochs=20, server_lr=0.3)
    for _ in range(10):
        guidance = fuse(strategy, memory)
        memory = guidance.memory
    for n, c in zip(*np.nonzero(OWNED), strict=True):
        answer = guidance.shared["head_weight"] @ MEANS[n, c] + guidance.shared["head_bias"]
        assert answer.argmax() == c


def test_without_class_means_the_head_is_unchanged() -> None:
    start = fuse(FedGH(server_epochs=0))
    found = fuse(FedGH(), start.memory, owned=np.zeros_like(OWNED))
    assert_array_equal(found.shared["head_weight"], start.shared["head_weight"])


def test_a_client_loads_the_head_and_keeps_its_body() -> None:
    weights = {"body.1.weight": np.ones((4, 2)), "head.weight": np.zeros((3, 4)), "head.bias": np.zeros(3)}
    client = SmallClient(weights=weights, means={"features": MEANS[0]}, counts=np.array([5, 2, 0]))
    guidance = fuse(FedGH())
    FedGH().apply(client, guidance.shared)
    after = client.weights()
    assert_array_equal(after["body.1.weight"], weights["body.1.weight"])
    assert_array_equal(after["head.weight"], guidance.shared["head_weight"])
    assert_array_equal(after["head.bias"], guidance.shared["head_bias"])
    upload = FedGH().upload(client)
    assert_array_equal(upload["owned"], [1, 1, 0])
    assert sum(values.nbytes for values in upload.values()) == 4 * 3 * 4 + 3


def test_unequal_feature_widths_are_refused() -> None:
    with pytest.raises(UserError, match=r"'fedgh' needs models with the same number of features"):
        fuse(FedGH(), means=[MEANS[0], np.zeros((3, 6), np.float32), MEANS[2]])
