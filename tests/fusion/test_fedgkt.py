"""FedGKT: losses of server and client against the formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from local_steps import batch_of, cross_entropy_by_hand, features_by_hand, logits_by_hand, small_model
from numpy.testing import assert_allclose, assert_array_equal
from several_networks import SeveralNetworks, softmax
from small_views import SmallClient, SmallServer

from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.fusion.two_models.fedgkt import ANSWERS, SERVER, FedGKT
from fedkd.randomness import numpy_generator

DRAWS = numpy_generator(0, "fedgkt")
FEATURES = [DRAWS.normal(size=(s, 3)).astype(np.float32) for s in (2, 4)]
LOGITS = [DRAWS.normal(size=(s, 4)).astype(np.float32) for s in (2, 4)]
LABELS = [np.array([0, 3], np.int32), np.array([1, 1, 2, 0], np.int32)]


def fuse(strategy: FedGKT, memory=None) -> Guidance:
    knowledge = Knowledge(
        clients=(0, 1),
        logits=None,
        samples=np.array([2, 4]),
        payload={"features": FEATURES, "sample_logits": LOGITS, "labels": LABELS},
        server=SmallServer(np.zeros((1, 3), np.float32), 4, {}),
    )
    return strategy.fuse(knowledge, memory or {})


def kd(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    t, s = softmax(teacher / temperature), softmax(student / temperature)
    return temperature**2 * float((t * np.log(t / s)).sum(axis=1).mean())


def test_the_server_loss_equals_the_formula():
    strategy = FedGKT(strength=0.7, temperature=2.0)
    network = torch.nn.Linear(3, 4)
    said = torch.from_numpy(softmax(LOGITS[1].astype(np.float64) / 2.0))
    found = strategy.server_loss(network, torch.from_numpy(FEATURES[1]), torch.tensor(LABELS[1]).long(), said)
    z = FEATURES[1].astype(np.float64) @ network.weight.detach().numpy().T + network.bias.detach().numpy()
    wanted = kd(z, LOGITS[1].astype(np.float64), 2.0) + 0.7 * cross_entropy_by_hand(z, LABELS[1])
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_a_linear_server_model_equals_a_hand_computation():
    strategy = FedGKT(server_hidden=(), server_epochs=3)
    start = fuse(FedGKT(server_hidden=(), server_epochs=0))
    for guidance in (start, fuse(strategy, start.memory)):
        weight, bias = guidance.memory["parameters"][:12].reshape(4, 3), guidance.memory["parameters"][12:]
        for own, told in zip(FEATURES, guidance.personal, strict=True):
            assert_allclose(told[ANSWERS], own @ weight.T + bias, atol=1e-5)
    assert not np.array_equal(start.memory["parameters"], guidance.memory["parameters"])


def test_the_server_learns_labels_and_logits():
    strategy = FedGKT(server_hidden=(16,), server_epochs=300, server_lr=0.01)
    guidance = fuse(strategy)
    for answers, labels in zip(guidance.personal, LABELS, strict=True):
        right = answers[ANSWERS][np.arange(len(labels)), labels]
        assert (right > answers[ANSWERS].mean(axis=1)).all()


class WithAnswers(SeveralNetworks):
    classes = 4


def test_a_client_matches_server_logits_by_sample():
    strategy = FedGKT(strength=0.7, temperature=2.0)
    client = WithAnswers(small_model(1), **{SERVER: strategy.network(3, 4)})
    assert strategy.local_step(client, {}) is None, "no answers yet"
    answers = DRAWS.normal(size=(9, 4)).astype(np.float32)
    strategy.apply(client, {ANSWERS: answers})
    rows = np.array([7, 0, 3, 3, 8])
    batch = replace(batch_of(client.model), index=torch.from_numpy(rows))
    found = strategy.local_step(client, {})(batch)
    z = logits_by_hand(client.weights(), batch.inputs.numpy())
    taught = kd(z, answers[rows].astype(np.float64), 2.0)
    wanted = cross_entropy_by_hand(z, batch.labels.numpy()) + 0.7 * taught
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_the_server_model_answers_once_it_is_received():
    strategy = FedGKT(server_hidden=(5,), server_epochs=1)
    client = WithAnswers(small_model(1), **{SERVER: strategy.network(3, 4)})
    assert strategy.predictor(client) is None
    guidance = fuse(strategy)
    strategy.apply(client, guidance.shared)  # of one who took no part
    assert ANSWERS not in client.memory
    x = batch_of(client.model).inputs
    predictor = strategy.predictor(client)
    assert predictor is not None
    features = torch.from_numpy(features_by_hand(client.weights(), x.numpy())).float()
    assert_allclose(predictor(x).detach(), client.network(SERVER)(features).detach(), atol=1e-5)
    assert FedGKT(inference="model").predictor(client) is None
    assert not fuse(FedGKT(inference="model")).shared


def test_an_upload_covers_every_private_sample():
    client = SmallClient(private_logits=LOGITS[1], means={"features": FEATURES[1]})
    upload = FedGKT().upload(client)
    assert_array_equal(upload["sample_logits"], LOGITS[1])
    assert upload["features"].shape == (4, 3) and upload["labels"].dtype == np.int32
    assert sum(values.nbytes for values in upload.values()) == 4 * 4 * (3 + 4 + 1)
