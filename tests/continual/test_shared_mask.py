"""Masks that clients vote on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from small_learning import fit_task, small_stream, start

from fedkd.continual.masks import masks
from fedkd.continual.masks.shared_mask import SharedMask, fingerprint_weights
from fedkd.continual.masks.ssnet import ExSSNeT
from fedkd.continual.masks.supsup import SupSup
from fedkd.models.zoo.mlp import mlp
from fedkd.randomness import seeded_torch

RULES = ["topk", "threshold"]


def drawn(shape=(6, 9), seed=0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def votes_of(*bits: torch.Tensor) -> torch.Tensor:
    """Return the log-odds of what masks say, kept finite."""
    share = torch.stack([own.double() for own in bits]).mean(dim=0)
    return torch.logit(share, eps=1e-6).float()


@pytest.mark.parametrize("rule", RULES)
def test_single_or_agreeing_clients_keep_their_scores_to_the_bit(rule):
    scores = drawn()
    own = masks.mask_of(scores, rule, 0.3)
    for said in ([own], [own] * 5):
        assert torch.equal(masks.agreed_scores(scores, votes_of(*said), rule), scores)


def test_topk_orders_by_votes_then_scores_then_index():
    scores = drawn()
    scores[:4] = 0.1 * (10 * scores[:4]).round() + 1e-3  # many of equal size
    votes = torch.randint(-2, 3, scores.shape, generator=torch.Generator().manual_seed(1)).float()
    votes[4:] *= -1.0  # zeros have either sign
    agreed = masks.agreed_scores(scores, votes, "topk")
    sizes, said = scores.abs().numpy().ravel(), votes.numpy().ravel()
    order = np.lexsort((np.arange(sizes.size), -sizes, -said))  # the last key counts first
    expected = np.empty_like(sizes)
    expected[order] = np.sort(sizes)[::-1]
    assert_array_equal(agreed.numpy().ravel(), expected * np.sign(scores.numpy().ravel()))
    count = 16
    assert set(np.flatnonzero(masks.mask_of(agreed, "topk", count / 54).numpy())) == set(order[:count])


def test_threshold_follows_the_majority_and_own_scores_in_a_tie():
    scores = torch.tensor([0.3, -0.2, 0.1, -0.4, 0.0, 0.0])
    log_odds = torch.tensor([-1.0, 2.0, 0.0, 0.0, -1.0, 0.0])
    agreed = masks.agreed_scores(scores, log_odds, "threshold")
    assert masks.mask_of(agreed, "threshold", 0.5).tolist() == [False, True, True, False, False, True]
    assert torch.equal(agreed[:4], torch.tensor([-0.3, 0.2, 0.1, -0.4]))


# On a client --------------------------------------------------------------------------------------------


def begun(learner, tasks=3):
    with seeded_torch(3):
        network = mlp((6,), 2 * tasks, hidden=(20,))
    stream = small_stream(tasks)
    learning = start(learner, network, stream)
    shared = SharedMask(
        learner, learning.context, fingerprint_weights(learner.memory(learning.context).weights)
    )
    return learning, stream, shared


def everything(learning, shared) -> int:
    return sum(shared.learner.memory(learning.context).sizes)


def test_a_mask_is_sent_as_one_bit_per_weight_by_layer():
    learning, stream, shared = begun(SupSup(density=0.3))
    fit_task(learning, stream, 0)
    scores = [learning.context.memory[f"scores/0/{name}.weight"] for name in learning.context.layers]
    bits = np.concatenate([masks.mask_of(own, "topk", 0.3).numpy().ravel() for own in scores])
    assert bits.size == everything(learning, shared) == 6 * 20 + 20 * 6
    assert_array_equal(shared.bits(), np.packbits(bits))
    assert shared.bits().nbytes == 30 and shared.taken() is None
    assert shared.fingerprint.nbytes == 8


def test_old_tasks_and_fixed_masks_ignore_votes():
    learning, stream, shared = begun(SupSup(density=0.3))
    fit_task(learning, stream, 0)
    learning.end()
    log_odds = np.random.default_rng(0).normal(size=everything(learning, shared)).astype(np.float32)
    x, _ = stream[0]

    def logits() -> bytes:
        return learning.model(0).eval()(x).detach().numpy().tobytes()

    settled, before = shared.bits(), logits()
    shared.agree(log_odds, None)
    assert_array_equal(shared.bits(), settled)
    fit_task(learning, stream, 1)
    own = shared.bits()
    shared.agree(log_odds, None)
    assert (shared.bits() != own).any() and logits() == before


def test_an_untrained_client_receives_the_mask_of_the_others():
    learning, _, shared = begun(SupSup(density=0.3))
    learning.enter(0)
    log_odds = np.where(np.arange(240) % 3 == 0, 5.0, -5.0).astype(np.float32)
    first = shared.bits()
    shared.agree(log_odds, None)
    said = np.unpackbits(shared.bits()).astype(bool)
    assert said.sum() == 72 and set(np.flatnonzero(said)) <= set(range(0, 240, 3))
    assert (np.unpackbits(first).astype(bool) != said).any()


def test_exssnet_keeps_weights_of_other_clients_fixed():
    learning, stream, shared = begun(ExSSNeT(density=0.4))
    assert shared.taken().size == 0
    fit_task(learning, stream, 0)
    learning.end()
    fit_task(learning, stream, 1, epochs=1, task_epochs=2)  # the mask
    taken = np.unpackbits(shared.taken()).astype(bool)
    assert_array_equal(shared.taken(), np.packbits(_whole(learning, 0)))
    others = np.zeros(240, dtype=bool)
    others[::2] = True
    shared.agree(np.zeros(240, dtype=np.float32), np.packbits(others | taken))
    before = _weights(learning)
    fit_task(learning, stream, 1, epochs=1, task_epochs=2, first=1)  # the weights
    moved = _weights(learning) != before
    assert moved.any() and not (moved & (others | taken)).any()
    free = _whole(learning, 1) & ~taken
    assert not (moved & ~free).any() and (free & others).any()
    learning.end()
    assert not any(name.startswith("others/") for name in learning.context.memory)


def _weights(learning) -> np.ndarray:
    layers = learning.context.layers.values()
    return np.concatenate([layer.module.weight.detach().numpy().ravel() for layer in layers])


def _whole(learning, task) -> np.ndarray:
    memory = learning.learner.memory(learning.context)
    return np.concatenate([mask.numpy().ravel() for mask in memory.masks(task).values()])


def test_fingerprints_distinguish_weights():
    one, other = {"a": torch.ones(2, 3)}, {"a": torch.ones(3, 2)}
    moved = {"a": torch.ones(2, 3).index_fill(0, torch.tensor([0]), 1.0001)}
    assert_array_equal(fingerprint_weights(one), fingerprint_weights({"a": torch.ones(2, 3)}))
    assert len({fingerprint_weights(weights).tobytes() for weights in (one, other, moved)}) == 3
