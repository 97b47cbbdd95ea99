"""FedHKT: groups and their means by hand, who is certain, and which samples the server's model learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from rounds import guidance_for, knowledge_of, softmax_by_loops
from small_views import SmallClient, SmallServer

from fedkd.fusion.distillation.confidence import normalised_certainty
from fedkd.fusion.distillation.fedhkt import FedHKT, weighted_by_certainty
from fedkd.fusion.weights.parameters import pack, unpack
from fedkd.randomness import numpy_generator

DRAWS = numpy_generator(0, "test fedhkt")
TRANSFER = DRAWS.normal(0, 1, (4, 2)).astype(np.float32)
SAMPLES = np.array([1, 3, 2, 5])
LIKE = np.array([[4, 0, 0], [0, 4, 0]])[[0, 0, 1, 1]]
LOGITS = (LIKE[:, None, :] + DRAWS.normal(0, 0.1, (4, 4, 3))).astype(np.float32)
"""Clients 0 and 1 say one thing, 2 and 3 another; client 3 has another architecture."""


def fuse(server: SmallServer, **options):
    weights = [server.initial_weights(server.architecture_of(n)) for n in range(4)]
    weights = [
        {name: w + n if w.dtype.kind == "f" else w for name, w in own.items()}
        for n, own in enumerate(weights)
    ]
    packs = [pack(own) for own in weights]
    extra = {name: [own[name] for own in packs] for name in packs[0]}
    knowledge = knowledge_of(LOGITS, payload=extra, server=server)
    object.__setattr__(knowledge, "samples", SAMPLES)
    return FedHKT(server_model="plain", server_epochs=1, **options).fuse(knowledge, {}), weights


def small_server() -> SmallServer:
    return SmallServer(TRANSFER, 3, {0: "plain", 1: "plain", 2: "plain", 3: "normed"})


def test_similar_clients_of_one_architecture_are_averaged() -> None:
    server = small_server()
    guidance, weights = fuse(server, clusters=2)
    told = [unpack(own, weights[n]) for n, own in enumerate(guidance.personal)]
    for n in (0, 1):
        assert_allclose(told[n]["weight"], (weights[0]["weight"] + 3 * weights[1]["weight"]) / 4, rtol=1e-6)
    for n in (2, 3):  # alike, but of two architectures
        for name, values in weights[n].items():
            assert_allclose(told[n][name], values, rtol=1e-6)

    voices = np.stack(
        [
            softmax_by_loops(server.logits(a, told[n])[None])[0]
            for n, a in enumerate(server.architectures.values())
        ]
    )[[0, 2, 3]]
    sure = 1 + (voices * np.log(voices)).sum(axis=-1) / np.log(3)
    ensemble = ((sure / sure.sum(axis=0))[..., None] * voices).sum(axis=0)
    learned = server.trained[0]["targets"][0]
    clear = 2 * (1 - ensemble.max(axis=-1)) <= 1.0
    assert_allclose(learned, ensemble * clear[:, None], rtol=1e-4, atol=1e-6)


def test_one_group_averages_all_and_n_groups_average_none() -> None:
    whole, weights = fuse(small_server(), clusters=1)
    share = SAMPLES[:3] / SAMPLES[:3].sum()
    mean = sum(s * w["weight"] for s, w in zip(share, weights, strict=False))
    assert_allclose(unpack(whole.personal[2], weights[2])["weight"], mean, rtol=1e-6)
    alone, weights = fuse(small_server(), clusters=4)
    for own, told in zip(weights, alone.personal, strict=True):
        assert_array_equal(told["parameters"], pack(own)["parameters"])


@pytest.mark.parametrize(("ambiguity", "learns"), [(0.0, False), (2.0, True)])
def test_the_server_learns_confident_samples_only(ambiguity, learns) -> None:
    server = small_server()
    fuse(server, ambiguity=ambiguity)
    assert bool(server.trained[0]["targets"][0].any()) == learns


def test_uncertain_samples_do_not_dilute_the_loss() -> None:
    z = torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 2.0]])
    ensemble = torch.tensor([[0.9, 0.1], [0.0, 0.0], [0.2, 0.8]])
    of_clear = FedHKT().server_loss(z[[0, 2]], ensemble[[0, 2]])
    assert float(FedHKT().server_loss(z, ensemble)) == pytest.approx(float(of_clear), rel=1e-6)
    assert float(FedHKT().server_loss(z, torch.zeros(3, 2))) == 0.0


def test_confidence_and_its_weights_equal_the_formula() -> None:
    q = np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]]])
    assert_allclose(normalised_certainty(q), [[1, 0], [0, 0]], atol=1e-12)
    assert_allclose(weighted_by_certainty(q), [[1.0, 0.0], [0.5, 0.5]])
    assert_array_equal(normalised_certainty(np.ones((3, 1))), np.ones(3))


def test_a_client_loads_the_weights_and_then_distils() -> None:
    server = small_server()
    guidance, weights = fuse(server)
    client = SmallClient(logits=LOGITS[0], weights=weights[0])
    client.learn(FedHKT(), guidance_for(0, guidance))
    assert_array_equal(client.weights()["weight"], unpack(guidance.personal[0], weights[0])["weight"])
    assert_array_equal(client.distilled[0][0], guidance.targets)
