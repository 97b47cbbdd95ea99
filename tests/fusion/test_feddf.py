"""FedDF: averages by hand in float64, the ensemble that teaches, and several architectures at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from small_views import SmallClient, SmallServer, state_of
from torch import nn

from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.fusion.weights.feddf import FedDF
from fedkd.fusion.weights.parameters import average, pack, unpack
from fedkd.randomness import numpy_generator

TRANSFER = numpy_generator(0, "test transfer").normal(0, 1, (4, 2)).astype(np.float32)
SAMPLES = np.array([10, 30, 5])


def draw_weights(server: SmallServer, architecture: str, seed: int) -> dict[str, np.ndarray]:
    """Return weights away from the initial ones; variances positive, counters whole."""
    generator = numpy_generator(seed, "test weights")
    drawn = {}
    for name, values in server.initial_weights(architecture).items():
        if values.dtype == np.int64:
            drawn[name] = np.array(generator.integers(0, 50), dtype=np.int64)
        else:
            drawn[name] = generator.uniform(0.1, 2.0, values.shape).astype(values.dtype)
    return drawn


def federation(architectures: dict[int, str]) -> tuple[SmallServer, list[dict[str, np.ndarray]]]:
    server = SmallServer(TRANSFER, classes=3, architectures=architectures)
    return server, [draw_weights(server, name, client) for client, name in architectures.items()]


def fuse(server, weights, samples=SAMPLES, **hyperparameters) -> Guidance:
    strategy = FedDF(**hyperparameters)
    uploads = [strategy.upload(SmallClient(weights=each)) for each in weights]
    knowledge = Knowledge(
        clients=tuple(server.architectures),
        logits=None,
        samples=samples[: len(weights)],
        payload={name: [upload[name] for upload in uploads] for name in uploads[0]},
        server=server,
    )
    return strategy.fuse(knowledge, {})


def received(guidance: Guidance, row: int, weights) -> dict[str, np.ndarray]:
    """Return the weights of a client after it has applied its guidance."""
    client = SmallClient(weights=weights[row])
    FedDF().apply(client, guidance.personal[row])
    return client.weights()


def assert_same(first, second) -> None:
    assert list(first) == list(second)
    for name, values in first.items():
        assert values.dtype == second[name].dtype and values.shape == second[name].shape
        assert_array_equal(values, second[name], err_msg=name)


@pytest.mark.parametrize("architecture", ["plain", "normed"])
def test_a_single_client_without_distillation_keeps_its_weights(architecture) -> None:
    server, weights = federation({4: architecture})
    guidance = fuse(server, weights, server_epochs=0)
    assert guidance.targets is None and server.trained == []
    assert_same(received(guidance, 0, weights), weights[0])


def test_weights_are_averaged_by_samples() -> None:
    server, weights = federation({0: "plain", 1: "plain", 2: "plain"})
    guidance = fuse(server, weights, server_epochs=0)
    for name in weights[0]:
        by_hand = sum(
            int(count) * each[name].astype(np.float64) for count, each in zip(SAMPLES, weights, strict=True)
        )
        for row in range(3):
            assert_allclose(received(guidance, row, weights)[name], by_hand / 45, rtol=1e-6)


def test_statistics_are_averaged_and_counters_are_the_largest() -> None:
    server, weights = federation({0: "normed", 1: "normed"})
    fused = received(fuse(server, weights, server_epochs=0), 0, weights)
    mean = (10 * weights[0]["1.running_var"].astype(np.float64) + 30 * weights[1]["1.running_var"]) / 40
    assert_allclose(fused["1.running_var"], mean, rtol=1e-6)
    counters = [each["1.num_batches_tracked"] for each in weights]
    assert counters[0] != counters[1]
    assert fused["1.num_batches_tracked"] == max(counters)
    assert fused["1.num_batches_tracked"].dtype == np.int64 and fused["1.num_batches_tracked"].shape == ()


def test_each_architecture_distils_from_the_whole_ensemble() -> None:
    server, weights = federation({1: "plain", 2: "normed", 5: "plain"})
    guidance = fuse(server, weights, server_epochs=3, server_lr=0.02, server_batch_size=7, validation=0.2)

    logits = [  # by hand, in float64
        TRANSFER.astype(np.float64) @ weights[row]["weight"].T + weights[row]["bias"] for row in (0, 2)
    ]
    hidden = TRANSFER.astype(np.float64) @ weights[1]["0.weight"].T + weights[1]["0.bias"]
    scale = weights[1]["1.weight"] / np.sqrt(weights[1]["1.running_var"].astype(np.float64) + 1e-5)
    hidden = (hidden - weights[1]["1.running_mean"]) * scale + weights[1]["1.bias"]
    logits.append(np.maximum(hidden, 0) @ weights[1]["3.weight"].T + weights[1]["3.bias"])
    mean = sum(logits) / 3
    ensemble = np.exp(mean) / np.exp(mean).sum(axis=1, keepdims=True)

    plain, normed = server.trained
    assert [plain["architecture"], normed["architecture"]] == ["plain", "normed"]
    for call in server.trained:
        assert call["options"] == (3, 7, 0.02, 0.2, 5)
        assert_allclose(call["targets"][0], ensemble, rtol=1e-4)
    start = (10 * weights[0]["weight"].astype(np.float64) + 5 * weights[2]["weight"]) / 15
    assert_allclose(plain["weights"]["weight"], start, rtol=1e-6)
    assert_same(normed["weights"], weights[1])

    assert_same(received(guidance, 0, weights), received(guidance, 2, weights))
    assert not np.array_equal(received(guidance, 0, weights)["weight"], plain["weights"]["weight"])
    assert received(guidance, 1, weights)["1.num_batches_tracked"] == weights[1]["1.num_batches_tracked"] + 3


def test_distillation_brings_the_average_closer_to_the_ensemble() -> None:
    server, weights = federation({0: "plain", 1: "plain", 2: "normed"})
    fused = received(fuse(server, weights, server_epochs=60, server_lr=0.05), 0, weights)
    call = server.trained[0]
    before, after = (
        FedDF().server_loss(
            torch.from_numpy(server.logits("plain", each)), torch.from_numpy(call["targets"][0])
        )
        for each in (call["weights"], fused)
    )
    assert after < 0.5 * before


def test_the_order_of_clients_does_not_change_the_average() -> None:
    server, weights = federation({0: "plain", 1: "plain", 2: "plain"})
    first = received(fuse(server, weights, server_epochs=2), 0, weights)
    second = received(fuse(server, weights[::-1], SAMPLES[::-1], server_epochs=2), 0, weights)
    assert_allclose(first["weight"], second["weight"], rtol=1e-5)


def test_clients_without_samples_do_not_divide_by_zero() -> None:
    mean = average([{"parameters": np.ones(2), "counters": np.ones(1, int)}] * 2, np.zeros(2, dtype=int))
    assert_array_equal(mean["parameters"], [1, 1])


@pytest.mark.parametrize("module", [nn.Linear(2, 3), nn.BatchNorm1d(4), nn.ReLU()])
def test_packing_keeps_every_array(module) -> None:
    weights = state_of(module)
    packed = pack(weights)
    assert packed["parameters"].dtype == np.float32 and packed["counters"].dtype == np.int64
    assert_same(unpack(packed, weights), weights)


def test_the_loss_is_kl_to_the_ensemble() -> None:
    student = torch.tensor([[1.0, 0.0]], requires_grad=True)
    target = torch.tensor([[0.3, 0.7]])
    q = 1 / (1 + math.exp(-1.0))
    loss = FedDF().server_loss(student, target)
    assert loss.item() == pytest.approx(0.3 * math.log(0.3 / q) + 0.7 * math.log(0.7 / (1 - q)), rel=1e-5)
    loss.backward()
    assert_allclose(student.grad, [[q - 0.3, 1 - q - 0.7]], atol=1e-6)
    assert FedDF().capabilities.needs == {"gradients", "weights", "server"}
