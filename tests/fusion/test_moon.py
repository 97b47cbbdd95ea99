"""MOON against its formula in float64, and where its term vanishes."""

from __future__ import annotations

import numpy as np
import pytest
from local_steps import (
    OneClient,
    batch_of,
    cross_entropy_by_hand,
    features_by_hand,
    logits_by_hand,
    loss_of,
    small_model,
)

from fedkd.fusion.weights.moon import Moon
from fedkd.training.weights import weights_of


def by_hand(now, received, previous, x, y, mu, temperature) -> float:
    r, near, far = (features_by_hand(weights, x) for weights in (now, received, previous))

    def cosine(a, b):
        return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    one, other = np.exp(cosine(r, near) / temperature), np.exp(cosine(r, far) / temperature)
    contrast = -np.log(one / (one + other)).mean()
    return cross_entropy_by_hand(logits_by_hand(now, x), y) + mu * contrast


@pytest.mark.parametrize(("mu", "temperature"), [(5.0, 0.5), (0.3, 2.0), (0.0, 0.5)])
def test_the_loss_equals_that_of_the_paper(mu, temperature):
    strategy, client = Moon(mu=mu, temperature=temperature), OneClient(small_model(1))
    strategy.upload(client)
    previous = client.weights()
    received = weights_of(small_model(2))
    client.load_weights(received)
    step = strategy.local_step(client, {})
    now = small_model(3)  # some steps later
    batch = batch_of(now)
    loss = step(batch)
    expected = by_hand(
        weights_of(now), received, previous, batch.inputs.numpy(), batch.labels.numpy(), mu, temperature
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert now.body[0].weight.grad.abs().sum() > 0


def test_the_contrastive_term_needs_a_previous_model():
    client = OneClient(small_model(1))
    assert Moon().local_step(client, {}) is None
    Moon().upload(client)
    assert Moon().local_step(client, {}) is not None


def test_the_previous_model_is_the_last_uploaded_one():
    strategy, client = Moon(), OneClient(small_model(1))
    strategy.upload(client)
    client.load_weights(weights_of(small_model(2)))
    strategy.upload(client)
    # Received and previous are one, so that whatever the features: −log σ(0) = log 2.
    batch = batch_of(client.model)
    contrast = loss_of(strategy, client, batch).item() - loss_of(Moon(mu=0.0), client, batch).item()
    assert contrast == pytest.approx(5.0 * np.log(2), rel=1e-5)
