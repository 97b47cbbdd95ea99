"""FedHKD: class means by hand, what the head learns of them in float64, and where that ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from local_steps import OneClient, batch_of, cross_entropy_by_hand, small_model
from numpy.testing import assert_allclose, assert_array_equal
from small_views import SmallClient

from fedkd.errors import UserError
from fedkd.fusion.prototypes.fedhkd import FedHKD
from fedkd.fusion.strategy import Knowledge

COUNTS = np.array([[3, 1, 0], [1, 0, 0]])
FEATURES = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
SAID = np.array([[[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [1, 1, 1]], [[0.4, 0.4, 0.2], [1, 1, 1], [1, 1, 1]]])


def softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(np.asarray(z, dtype=np.float64))
    return powers / powers.sum(axis=-1, keepdims=True)


def knowledge(features=FEATURES) -> Knowledge:
    return Knowledge(
        clients=(0, 1),
        logits=None,
        samples=COUNTS.sum(axis=1),
        label_counts=COUNTS,
        payload={"features": list(features), "label_logits": list(np.log(SAID).astype(np.float32))},
    )


def test_class_means_are_weighted_by_samples_of_the_owners() -> None:
    shared = FedHKD().fuse(knowledge(), {}).shared
    assert_allclose(shared["features"][0], (3 * FEATURES[0, 0] + FEATURES[1, 0]) / 4)
    assert_allclose(shared["features"][1], FEATURES[0, 1])
    assert_allclose(shared["probabilities"][0], (3 * SAID[0, 0] + SAID[1, 0]) / 4, rtol=1e-6)
    assert_allclose(shared["probabilities"][1], SAID[0, 1], rtol=1e-6)
    assert_array_equal(shared["owners"], [2, 1, 0])
    assert not shared["probabilities"][2].any()


def test_unequal_feature_widths_are_refused() -> None:
    with pytest.raises(UserError, match="fedhkd"):
        FedHKD().fuse(knowledge([FEATURES[0], FEATURES[1, :, :1]]), {})


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_client_uploads_mean_features_and_softened_predictions(noise) -> None:
    logits = np.array([[1, 0, 0], [0, 2, 1], [0, 0, 1], [3, 0, 0]], dtype=np.float32)
    client = SmallClient(logits=logits, private_logits=logits[:2], means={"features": FEATURES[0]})
    sent = FedHKD(noise=noise).upload(client)  # labels 0 and 1, and none of class 2
    assert_array_equal(sent["label_counts"], [1, 1, 0])
    assert_allclose(np.exp(sent["label_logits"][:2]), softmax(2 * logits[:2]), rtol=1e-5)
    drawn = client.generator("noise").standard_normal((3, 2), dtype=np.float32)
    assert_allclose(sent["features"][:2], FEATURES[0, :2] + noise * drawn[:2], rtol=1e-6)
    assert not sent["features"][2].any()


def test_the_loss_and_gradient_equal_those_of_the_paper() -> None:
    model = small_model(3)
    batch, draws = batch_of(model, 6), np.random.default_rng(0)
    means, owners = draws.normal(size=(4, 3)), np.array([2, 0, 1, 1], dtype=np.int32)
    said = softmax(draws.normal(size=(4, 4))) * (owners > 0)[:, None]
    guidance = {"features": means, "probabilities": said, "owners": owners}
    step = FedHKD(strength=0.3, pull=0.7, temperature=0.5).local_step(OneClient(model), guidance)
    value = step(batch)
    weight, bias = (p.detach().numpy() for p in (model.head.weight, model.head.bias))
    told = softmax((means @ weight.T + bias) / 0.5)
    owned = owners > 0
    divergence = (said[owned] * np.log(said[owned] / told[owned])).sum(axis=1).mean()
    features, labels = batch.features.detach().numpy(), batch.labels.numpy()
    apart = np.where(owned[labels, None], features - means[labels], 0.0)
    expected = cross_entropy_by_hand(batch.logits.detach().numpy(), labels)
    expected += 0.3 * divergence + 0.7 * (apart**2).mean()
    assert float(value) == pytest.approx(expected, rel=1e-6)

    value.backward()
    share = softmax(batch.logits.detach().numpy()) - np.eye(4)[labels]
    of_means = np.where(owned[:, None], told - said, 0.0) / 0.5 / owned.sum()
    assert_allclose(
        model.head.weight.grad, share.T @ features / 6 + 0.3 * of_means.T @ means, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("owners", [None, [0, 0, 0, 0]])
def test_unknown_classes_leave_only_the_cross_entropy(owners) -> None:
    told = {"features": np.zeros((4, 3)), "probabilities": np.zeros((4, 4)), "owners": np.array(owners or [])}
    guidance = {} if owners is None else told
    assert FedHKD().local_step(OneClient(small_model(0)), guidance) is None


def test_zero_weights_equal_local_training() -> None:
    model = small_model(1)
    batch = batch_of(model)
    told = {"features": np.ones((4, 3)), "probabilities": np.full((4, 4), 0.25), "owners": np.ones(4)}
    value = FedHKD(strength=0.0, pull=0.0).local_step(OneClient(model), told)(batch)
    assert float(value) == pytest.approx(float(torch.nn.functional.cross_entropy(batch.logits, batch.labels)))
