"""MHAT: what the server's model learns, and where it is another strategy."""

from __future__ import annotations

import numpy as np
import torch
from numpy.testing import assert_allclose, assert_array_equal
from rounds import draw_logits, knowledge_of, mean_by_loops, softmax_by_loops
from small_views import SmallServer

from fedkd.fusion.distillation.mhat import MHAT
from fedkd.randomness import numpy_generator

TRANSFER = numpy_generator(0, "test transfer").normal(0, 1, (4, 2)).astype(np.float32)


def test_the_server_model_learns_the_mean_prediction_and_persists() -> None:
    z, server = draw_logits(), SmallServer(TRANSFER, 3)
    strategy = MHAT(server_model="plain", temperature=2.0, server_epochs=3, server_lr=0.1)
    first = strategy.fuse(knowledge_of(z, server=server), {})
    (mean,) = server.trained[0]["targets"]
    assert_allclose(mean, mean_by_loops(softmax_by_loops(z, 2.0)), rtol=1e-5)
    assert server.trained[0]["options"] == (3, 64, 0.1, 0.0, 0)
    strategy.fuse(knowledge_of(z, server=server), first.memory)
    weights = server.trained[1]["weights"]
    assert_array_equal(first.memory["parameters"], np.concatenate([w.ravel() for w in weights.values()]))
    assert_allclose(first.targets, server.logits("plain", weights), rtol=1e-6)


def test_the_server_loss_is_kl_to_the_softened_mean() -> None:
    z, other = draw_logits(2)
    p, q = (np.array(softmax_by_loops(rows[None], 2.0)[0]) for rows in (z, other))
    loss = MHAT(temperature=2.0).server_loss(torch.tensor(other), torch.tensor(p))
    assert_allclose(float(loss), 4 * (p * np.log(p / q)).sum(axis=1).mean(), rtol=1e-5)
