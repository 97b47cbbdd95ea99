"""FML: both models' losses and steps by hand, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from local_steps import batch_of, logits_by_hand, small_model
from numpy.testing import assert_array_equal
from several_networks import SeveralNetworks, assert_weights, backwards, gradient, softmax, step

from fedkd.fusion.two_models.fml import FML
from fedkd.fusion.two_models.shared_model import SHARED_NETWORK
from fedkd.fusion.weights.parameters import pack
from fedkd.training.weights import weights_of


def client_of() -> SeveralNetworks:
    return SeveralNetworks(small_model(1), **{SHARED_NETWORK: small_model(2)})


def by_hand(own, other, own_weight: float, shared_weight: float):
    """Return both gradients: of ``w CE + (1 − w) KL(other ‖ own)``, with the other one held."""
    batch = batch_of(small_model(0))
    x, y = batch.inputs.numpy(), batch.labels.numpy()
    p, q = (softmax(logits_by_hand(weights, x)) for weights in (own, other))
    slopes = []
    for weights, mine, theirs, weight in ((own, p, q, own_weight), (other, q, p, shared_weight)):
        slope = weight * (mine - np.eye(p.shape[1])[y]) + (1 - weight) * (mine - theirs)
        features = np.tanh(x @ weights["body.0.weight"].T + weights["body.0.bias"])
        slopes.append(backwards(weights, x, features, slope / len(y)))
    return slopes


@pytest.mark.parametrize(("own_weight", "shared_weight"), [(0.5, 0.5), (0.2, 0.9), (1.0, 1.0)])
def test_each_model_learns_from_labels_and_the_other_model(own_weight, shared_weight):
    client = client_of()
    own, other = client.weights(), client.weights(SHARED_NETWORK)
    step(FML(own_weight=own_weight, shared_weight=shared_weight), client, steps=2)
    for _ in range(2):
        of_own, of_other = by_hand(own, other, own_weight, shared_weight)
        own = {name: own[name] - 0.1 * of_own[name] for name in own}
        other = {name: other[name] - 0.1 * of_other[name] for name in other}
    assert_weights(client.network(), own)
    assert_weights(client.network(SHARED_NETWORK), other)


def test_zero_distillation_weights_equal_local_training():
    client = client_of()
    own = client.weights()
    step(FML(own_weight=1.0), client)
    slopes = gradient(own)
    assert_weights(client.network(), {name: own[name] - 0.1 * slopes[name] for name in own})


def test_the_loss_is_the_sum_of_both():
    client = client_of()
    x = batch_of(client.model).inputs.numpy()
    p, q = (softmax(logits_by_hand(client.weights(of), x)) for of in ("model", SHARED_NETWORK))
    y = batch_of(client.model).labels.numpy()
    labels = [-np.log(probabilities[np.arange(len(y)), y]).mean() for probabilities in (p, q)]
    kl = [(t * np.log(t / s)).sum(axis=1).mean() for s, t in ((p, q), (q, p))]
    value = step(FML(own_weight=0.2, shared_weight=0.9), client)
    assert value == pytest.approx(0.2 * labels[0] + 0.8 * kl[0] + 0.9 * labels[1] + 0.1 * kl[1], rel=1e-5)


def test_only_the_shared_model_is_sent():
    client = client_of()
    own, upload = client.weights(), FML().upload(client)
    assert_array_equal(upload["parameters"], pack(client.weights(SHARED_NETWORK))["parameters"])
    FML().apply(client, pack(weights_of(small_model(7))))
    assert_weights(client.network(SHARED_NETWORK), weights_of(small_model(7)))
    assert_weights(client.network(), own)
    assert FML().predictor(client) is None


def test_the_shared_model_is_small_by_default():
    assert FML().shared_arguments == {"hidden": [64]}
    assert FML(shared_model="lenet").shared_arguments == {}
    assert FML(shared_args={"hidden": [8]}).shared_arguments == {"hidden": [8]}
