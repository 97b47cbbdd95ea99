from __future__ import annotations

import numpy as np
import torch
from numpy.testing import assert_allclose, assert_array_equal
from small_views import SmallClient

from fedkd.fusion.distillation.panda import Panda, similarity_weights
from fedkd.fusion.strategy import Knowledge
from fedkd.training.losses import kd_kl


def test_half_similarity_gives_half_of_an_equal_weight():
    cosine = np.array([[1, 0.5, -0.9], [0.5, 1, 0], [-0.9, 0, 1]])
    expected = [[1 - 0.5 / 3, 0.5 / 3, 0], [0.5 / 3, 1 - 0.5 / 3, 0], [0, 0, 1]]
    assert_allclose(similarity_weights(cosine), expected, atol=1e-12)
    assert_allclose(similarity_weights(np.ones((4, 4))), 0.25)
    assert_array_equal(similarity_weights(np.ones((1, 1))), 1.0)


def test_the_gradient_equals_that_of_the_weighted_losses():
    """``∇ KD(z_n ← K_n) = 1/N Σ_m max(0, cos_nm) ∇ KD(z_n ← q_m)`` where distillation begins."""
    draws = np.random.default_rng(0)
    logits = draws.normal(0, 1.5, (4, 20, 3)).astype(np.float32)
    start = draws.dirichlet(np.ones(3), 4).astype(np.float32)
    q = torch.tensor(logits).softmax(-1)
    moved = q.numpy().mean(axis=1, dtype=np.float64) - start
    targets = Panda().fuse(Knowledge(tuple(range(4)), logits, np.ones(4), payload={"start": list(start)}), {})
    assert targets.targets is not None
    negative = 0
    for n in range(4):
        found, expected = (torch.tensor(logits[n], requires_grad=True) for _ in range(2))
        kd_kl(found, torch.tensor(targets.targets[n]), 1.0).backward()
        total = torch.zeros(())
        for m in range(4):
            cosine = moved[n] @ moved[m] / np.linalg.norm(moved[n]) / np.linalg.norm(moved[m])
            negative += cosine < 0
            total = total + max(0.0, cosine) / 4 * kd_kl(expected, q[m], 1.0)
        total.backward()
        assert_allclose(found.grad.numpy(), expected.grad.numpy(), atol=1e-6)
    assert negative, "somebody has moved the other way"


def test_a_client_stores_its_untrained_predictions():
    client, strategy = (
        SmallClient(logits=np.log(np.array([[0.2, 0.8], [0.4, 0.6]], dtype=np.float32))),
        Panda(),
    )
    strategy.before_training(client)
    client.all_logits = np.zeros((2, 2), dtype=np.float32)
    strategy.before_training(client)
    sent = strategy.upload(client)
    assert sent.keys() == {"logits", "start"}
    assert_allclose(sent["start"], [0.3, 0.7], rtol=1e-6)
    assert sent["start"].dtype == np.float32
    client.all_logits = np.zeros((2, 3), dtype=np.float32)  # another task, with other classes
    assert_allclose(strategy.upload(client)["start"], 1 / 3, rtol=1e-6)
