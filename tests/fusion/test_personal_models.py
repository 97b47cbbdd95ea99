"""Ditto, APFL and pFedMe: a personal model beside the one that is averaged, step by step in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from local_steps import batch_of, cross_entropy_by_hand, logits_by_hand, small_model
from numpy.testing import assert_allclose, assert_array_equal
from several_networks import SeveralNetworks, assert_weights, gradient, step

from fedkd.fusion.strategy import Knowledge
from fedkd.fusion.two_models.apfl import APFL
from fedkd.fusion.two_models.ditto import Ditto
from fedkd.fusion.two_models.personal_model import PERSONAL
from fedkd.fusion.two_models.pfedme import PFedMe
from fedkd.fusion.weights.parameters import pack, unpack
from fedkd.training.weights import weights_of


def client_of() -> SeveralNetworks:
    """Return a client whose personal model is already away from w."""
    return SeveralNetworks(small_model(1), **{PERSONAL: small_model(2)})


@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_ditto_pulls_the_personal_model_to_the_received_one(strength):
    client = client_of()
    w, v = client.weights(), client.weights(PERSONAL)
    received = {name: values.copy() for name, values in w.items()}
    step(Ditto(strength=strength), client, steps=2)
    for _ in range(2):
        of_w, of_v = gradient(w), gradient(v)
        w = {name: w[name] - 0.1 * of_w[name] for name in w}
        v = {name: v[name] - 0.1 * (of_v[name] + strength * (v[name] - received[name])) for name in v}
    assert_weights(client.network(), w)
    assert_weights(client.network(PERSONAL), v)


def test_a_strong_pull_keeps_ditto_at_the_received_model():
    client = client_of()
    received = client.weights()
    step(Ditto(strength=1e6), client, lr=1e-6)  # ηλ = 1
    for name, values in client.weights(PERSONAL).items():
        assert_allclose(values, received[name], atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_apfl_trains_its_local_part_with_the_mixed_gradient(share):
    client = client_of()
    w, v = client.weights(), client.weights(PERSONAL)
    step(APFL(share=share), client, steps=2)
    for _ in range(2):
        of_w, of_mix = gradient(w), gradient({n: share * v[n] + (1 - share) * w[n] for n in w})
        w, v = (
            {name: w[name] - 0.1 * of_w[name] for name in w},
            {name: v[name] - 0.1 * share * of_mix[name] for name in v},
        )
    assert_weights(client.network(), w)
    assert_weights(client.network(PERSONAL), v)
    mixed = {name: share * v[name] + (1 - share) * w[name] for name in w}
    predictor = APFL(share=share).predictor(client)
    assert predictor is not None
    assert_weights(predictor, mixed)


def test_apfl_adapts_its_share_once_per_round_within_bounds():
    client = client_of()
    w, v = client.weights(), client.weights(PERSONAL)
    slopes = gradient({n: 0.5 * v[n] + 0.5 * w[n] for n in w})
    slope = sum(float(((v[n] - w[n]) * slopes[n]).sum()) for n in w)
    strategy = APFL(share_lr=0.4)
    step(strategy, client, steps=3)
    assert strategy.share_of(client) == pytest.approx(0.5 - 0.4 * slope, rel=1e-6)
    assert abs(slope) > 1e-3
    step(APFL(share_lr=1e9), client)
    assert strategy.share_of(client) in (0.0, 1.0)


def test_pfedme_solves_a_personal_model_for_each_batch():
    client = client_of()
    strategy = PFedMe(strength=3.0, personal_steps=4, personal_lr=0.05)
    w = client.weights()
    value = step(strategy, client, lr=0.02, steps=2)
    theta = {name: values.copy() for name, values in w.items()}
    for _ in range(2):
        for _ in range(4):
            before = theta
            slopes = gradient(theta)
            theta = {n: theta[n] - 0.05 * (slopes[n] + 3.0 * (theta[n] - w[n])) for n in w}
        start, w = w, {n: w[n] - 0.02 * 3.0 * (w[n] - theta[n]) for n in w}
    assert_weights(client.network(), w)
    assert_weights(client.network(PERSONAL), theta)
    batch = batch_of(client.model)
    loss = cross_entropy_by_hand(logits_by_hand(before, batch.inputs.numpy()), batch.labels.numpy())
    away = sum(((start[n] - theta[n]) ** 2).sum() for n in w)
    assert value == pytest.approx(loss + 1.5 * away, rel=1e-6)
    assert strategy.predictor(client) is client.network(PERSONAL)


@pytest.mark.parametrize("strategy", [PFedMe(), APFL(share_lr=0.4)])
def test_unused_parameters_stay(strategy):
    client = client_of()
    for network in (client.network(), client.network(PERSONAL)):
        network.register_parameter("unused", torch.nn.Parameter(torch.ones(2, dtype=torch.float64)))
    step(strategy, client)
    assert client.weights(PERSONAL)["unused"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("strategy", [Ditto(inference="shared"), APFL(inference="shared")])
def test_the_shared_model_can_answer(strategy):
    assert strategy.predictor(client_of()) is None
    assert PFedMe(inference="shared").predictor(client_of()) is None


def test_the_average_replaces_only_the_shared_model():
    client = client_of()
    for strategy in (Ditto(), APFL(), PFedMe()):
        personal, arrived = client.weights(PERSONAL), pack(weights_of(small_model(9)))
        strategy.apply(client, arrived)
        assert_weights(client.network(), unpack(arrived, client.weights()))
        assert_weights(client.network(PERSONAL), personal)
        assert strategy.upload(client).keys() == {"parameters", "counters"}
        assert_array_equal(strategy.upload(client)["parameters"], arrived["parameters"])


def fused(strategy: PFedMe, uploads: list[list[float]], memory=None):
    arrays = [{"parameters": np.array(own, np.float32), "counters": np.empty(0, np.int64)} for own in uploads]
    knowledge = Knowledge(
        clients=tuple(range(len(uploads))),
        logits=None,
        samples=np.array([1, 3][: len(uploads)]),
        payload={name: [own[name] for own in arrays] for name in ("parameters", "counters")},
    )
    return strategy.fuse(knowledge, memory or {})


def test_pfedme_may_mix_the_mean_into_server_weights():
    first = fused(PFedMe(server_share=0.25), [[0.0, 4.0], [4.0, 8.0]])
    assert_allclose(first.shared["parameters"], [3.0, 7.0])
    second = fused(PFedMe(server_share=0.25), [[7.0, 7.0]], first.memory)
    assert_allclose(second.shared["parameters"], [0.75 * 3 + 0.25 * 7, 7.0])
    assert not fused(PFedMe(), [[1.0]]).memory
