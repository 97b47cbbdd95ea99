"""FedGen: the generator's loss by loops, what clients learn from it, and when."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from local_steps import batch_of, cross_entropy_by_hand, logits_by_hand, small_model
from numpy.testing import assert_allclose, assert_array_equal
from several_networks import SeveralNetworks, softmax
from small_views import SmallServer

from fedkd.fusion.prototypes.fedgen import CLASSES, GENERATOR, FedGen, diversity, server_loss
from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.randomness import numpy_generator

DRAWS = numpy_generator(0, "fedgen")
HEADS = DRAWS.normal(size=(2, 4, 3)).astype(np.float32), DRAWS.normal(size=(2, 4)).astype(np.float32)
COUNTS = np.array([[3, 0, 0, 1], [1, 2, 0, 0]])  # nobody owns class 2


def fuse(strategy: FedGen, memory=None, heads=HEADS, counts=COUNTS) -> Guidance:
    knowledge = Knowledge(
        clients=(0, 1),
        logits=None,
        samples=np.array([1, 3]),
        label_counts=counts,
        payload={"head_weight": list(heads[0]), "head_bias": list(heads[1])},
        server=SmallServer(np.zeros((1, 3), np.float32), 4, {}),
    )
    return strategy.fuse(knowledge, memory or {})


class Given(torch.nn.Module):
    """A generator of given features."""

    def __init__(self, features: np.ndarray) -> None:
        super().__init__()
        self.features = torch.from_numpy(features)

    def forward(self, entries: torch.Tensor) -> torch.Tensor:
        return self.features


def test_the_generator_loss_equals_loops():
    labels, noise = np.array([0, 1, 3, 0, 2]), DRAWS.normal(size=(5, 6)).astype(np.float32)
    features = DRAWS.normal(size=(5, 3)).astype(np.float32)
    total = 0.0
    for i, y in enumerate(labels):
        for n in range(2):
            z = [float(HEADS[0][n, c] @ features[i].astype(np.float64) + HEADS[1][n, c]) for c in range(4)]
            share = COUNTS[n, y] / max(COUNTS[:, y].sum(), 1)
            total += share * (math.log(sum(math.exp(value) for value in z)) - z[y]) / 5
    pairs = 0.0
    for i in range(5):
        for j in range(5):
            apart = sum((float(a) - float(b)) ** 2 for a, b in zip(noise[i], noise[j], strict=True)) / 6
            made = sum(abs(float(a) - float(b)) for a, b in zip(features[i], features[j], strict=True)) / 3
            pairs += apart * made / 25
    loss = server_loss(*HEADS, COUNTS)
    found = loss(Given(features), torch.from_numpy(labels), torch.from_numpy(noise))
    assert found.item() == pytest.approx(total + math.exp(-pairs), rel=1e-5)


def test_constant_samples_have_the_worst_diversity():
    noise = torch.from_numpy(DRAWS.normal(size=(4, 6)))
    assert diversity(noise, torch.ones(4, 3, dtype=torch.float64)).item() == 1.0
    assert diversity(noise, noise[:, :3]).item() < 1.0


def test_heads_are_averaged_by_samples_and_the_generator_learns():
    start = fuse(FedGen(server_steps=0))
    assert_allclose(start.shared["head_weight"], 0.25 * HEADS[0][0] + 0.75 * HEADS[0][1], rtol=1e-6)
    assert_allclose(start.shared["head_bias"], 0.25 * HEADS[1][0] + 0.75 * HEADS[1][1], rtol=1e-6)
    assert start.shared[CLASSES].tolist() == [1, 1, 0, 1]
    strategy, loss = FedGen(server_steps=50, server_lr=0.01), server_loss(*HEADS, COUNTS)
    labels, noise = torch.arange(64) % 2, torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    losses = []
    for guidance in (start, fuse(strategy, start.memory)):
        client = client_of(strategy)
        strategy.apply(client, guidance.shared)
        losses.append(loss(client.network(GENERATOR).eval(), labels, noise).item())
    assert losses[1] < 0.8 * losses[0]


def test_homogeneous_models_are_averaged_by_samples():
    strategy = FedGen(server_steps=0).for_clients(one_architecture=True)
    assert strategy.share == "model" and {"weights", "one_architecture"} <= strategy.capabilities.needs
    clients = [OfClasses(small_model(seed).float()) for seed in (1, 2)]
    uploads = [strategy.upload(client) for client in clients]
    knowledge = Knowledge(
        clients=(0, 1),
        logits=None,
        samples=np.array([1, 3]),
        label_counts=COUNTS,
        payload={name: [upload[name] for upload in uploads] for name in uploads[0] if name != "label_counts"},
        server=SmallServer(np.zeros((1, 3), np.float32), 4, {0: "one", 1: "one"}),
    )
    assert strategy.prepare(knowledge.server) is None, "models of one architecture begin alike"
    before = [client.weights() for client in clients]
    arriving = client_of(strategy)
    strategy.apply(arriving, strategy.fuse(knowledge, {}).shared)
    for name, values in arriving.weights().items():
        wanted = (before[0][name].astype(np.float64) + 3 * before[1][name].astype(np.float64)) / 4
        assert_allclose(values, wanted, rtol=0, atol=1e-6, err_msg=name)
    heads = FedGen().for_clients(one_architecture=False)
    assert heads.share == "head" and not {"weights", "one_architecture"} & heads.capabilities.needs
    assert heads.upload(clients[0]).keys() < uploads[0].keys()


class OfClasses(SeveralNetworks):
    def label_counts(self) -> np.ndarray:
        return COUNTS[0]


def test_clients_start_with_one_head_and_no_generator():
    class Headed(SmallServer):
        def model(self, architecture: str) -> torch.nn.Module:
            return small_model(7 if architecture == "first" else 8).float()

    server = Headed(np.zeros((1, 3), np.float32), 4, {0: "first", 1: "second"})
    strategy, client = FedGen(), client_of(FedGen())
    before, made = client.weights(), client.weights(GENERATOR)
    guidance = strategy.prepare(server)
    assert not guidance.memory, "the generator begins when it is first trained"
    strategy.apply(client, guidance.shared)
    first = server.initial_weights("first")
    for name, values in client.weights().items():
        assert_array_equal(values, first[name] if name.startswith("head.") else before[name])
    for name, values in client.weights(GENERATOR).items():
        assert_array_equal(values, made[name])
    assert strategy.local_step(client, {}) is None


def test_known_classes_persist():
    memory = fuse(FedGen(server_steps=0)).memory
    counts = COUNTS * np.array([0, 1, 0, 1])
    assert fuse(FedGen(server_steps=0), memory, counts=counts).shared[CLASSES].tolist() == [1, 1, 0, 1]


def client_of(strategy: FedGen) -> SeveralNetworks:
    """Return a client in single precision, as generators are."""
    return SeveralNetworks(small_model(1).float(), **{GENERATOR: strategy.generator(4, 3)})


class InFloats(SeveralNetworks):
    classes = 4


def test_the_client_loss_equals_the_formula():
    strategy = FedGen(strength=2.0, decay=0.5)
    model = small_model(1)
    client = InFloats(model, **{GENERATOR: strategy.generator(4, 3)})
    assert strategy.local_step(client, {}) is None, "nothing has come yet"
    client.round = 3
    guidance = fuse(FedGen(server_steps=5)).shared
    strategy.apply(client, guidance)
    client.networks["model"] = client.model.float()
    batch = batch_of(small_model(1))
    batch = replace(batch, model=client.model, logits=client.model(batch.inputs.float()))
    with torch.random.fork_rng():
        torch.manual_seed(11)
        found = strategy.local_step(client, {})(batch)
        torch.manual_seed(11)
        known = np.array([0, 1, 3])
        drawn = known[torch.randint(3, (5,)).numpy()]
        noise = [torch.randn(5, 32) for _ in range(2)]
    generator, weights = client.network(GENERATOR).eval(), client.weights()
    y = batch.labels.numpy()
    said = []
    for labels, own in zip((y, drawn), noise, strict=True):
        entries = torch.cat([torch.from_numpy(np.eye(4, dtype=np.float32)[labels]), own], dim=1)
        features = generator(entries).detach().numpy().astype(np.float64)
        said.append(features @ weights["head.weight"].T + weights["head.bias"])
    p, q = softmax(said[0]), softmax(z := logits_by_hand(weights, batch.inputs.numpy()))
    kl = (p * np.log(p / q)).sum(axis=1).mean()
    wanted = cross_entropy_by_hand(z, y) + 2 * 0.5**3 * (kl + cross_entropy_by_hand(said[1], drawn))
    assert found.item() == pytest.approx(wanted, rel=1e-4)
    found.backward()
    assert all(p.grad is None for p in client.network(GENERATOR).parameters())


def test_zero_strength_equals_head_averaging():
    client = client_of(FedGen())
    FedGen().apply(client, fuse(FedGen(server_steps=0)).shared)
    assert FedGen(strength=0.0).local_step(client, {}) is None
    assert_array_equal(client.memory[CLASSES], [1, 1, 0, 1])
