"""`dlf`: logits move with the progress of neighbours."""

from __future__ import annotations

import math

import knfu_by_loops
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from rounds import draw_logits, entropy, knowledge_of, num_bytes
from small_views import SmallClient

from fedkd.fusion.distillation.dlf import DLF, matched_strength
from fedkd.fusion.math.probabilities import log_softmax, row_kl, softmax


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def strength_by_loops(z, shift, moved, most):
    """Return α of one sample by halving an interval in plain numbers."""
    base, low, high = knfu_by_loops.softmax(z, 1.0), 0.0, most

    def reached(alpha):
        there = [a + alpha * s for a, s in zip(z, shift, strict=True)]
        return divergence(knfu_by_loops.softmax(there, 1.0), base)

    if reached(most) < moved:
        return most
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) >= moved else (middle, high)
    return low


@pytest.mark.parametrize("strength", [None, 0.5])
def test_dlf_equals_loops(strength) -> None:
    initial, logits = draw_logits(4, 5, 3, spread=0.3, seed=1), draw_logits(4, 5, 3, seed=2)
    strategy = DLF(beta=0.7, neighbours=2, strength=strength, temperature=1.5)
    guidance = strategy.fuse(knowledge_of(logits, payload={"initial": list(initial)}), {})
    z, r = logits.tolist(), initial.tolist()
    d = knfu_by_loops.knfu(z, beta=0.7)[1]
    for n in range(4):
        others = sorted((m for m in range(4) if m != n), key=lambda m: d[n][m])[:2]
        weight = {m: math.exp(-0.7 * d[n][m]) for m in [n, *others]}
        total = sum(weight.values())
        assert_allclose(guidance.weights[n], [weight.get(m, 0) / total for m in range(4)], atol=1e-6)
        for i in range(5):
            fused = list(z[n][i])
            for m in others:
                shift = [a - b for a, b in zip(z[m][i], r[m][i], strict=True)]
                q = [knfu_by_loops.softmax(row, 1.0) for row in (z[m][i], r[m][i])]
                alpha = strength or strength_by_loops(z[n][i], shift, divergence(*q), 1.5)
                fused = [a + weight[m] / total * alpha * s for a, s in zip(fused, shift, strict=True)]
            assert_allclose(guidance.targets[n, i], knfu_by_loops.softmax(fused, 1.5), atol=1e-5)


def test_strength_limits_equal_their_special_cases() -> None:
    z, shift = draw_logits(1, 6, 4)[0].astype(float), draw_logits(1, 6, 4, seed=1)[0].astype(float)
    as_far = row_kl(np.exp(log_softmax(z + shift)), log_softmax(z))
    assert_allclose(matched_strength(z, shift, as_far, 1.5), 1.0, atol=1e-6)  # z_n is r_m
    assert_array_equal(matched_strength(z, np.zeros_like(z), as_far, 1.5), 0.0)
    assert_array_equal(matched_strength(z, shift, np.full(6, 1e3), 1.5), 1.5)
    assert_allclose(matched_strength(z, shift, np.zeros(6), 1.5), 0.0, atol=1e-8)
    larger = [matched_strength(z, shift, share * as_far, 10.0) for share in (0.1, 0.5, 0.9)]
    assert (np.diff(larger, axis=0) > 0).all()


def test_dlf_extrapolates_beyond_the_mean() -> None:
    """A sure client beside three that learned the same less surely: their mean is less sure, this is not."""
    sure, unsure, nothing = [[6.0, 0, 0]], [[1.0, 0, 0]], [[0.0, 0, 0]]
    logits = np.array([sure, unsure, unsure, unsure], dtype=np.float32)
    said = knowledge_of(logits, payload={"initial": [np.array(nothing, dtype=np.float32)] * 4})
    told = DLF(beta=0.0).fuse(said, {}).targets[0]
    assert entropy(told)[0] < entropy(softmax(logits[0]))[0] < entropy(softmax(logits).mean(axis=0))[0]


def test_without_neighbours_or_progress_clients_keep_their_logits() -> None:
    logits, initial = draw_logits(3, 4, 3), draw_logits(3, 4, 3, seed=1)
    for strategy, rows, sent in (
        (DLF(), 1, initial),
        (DLF(neighbours=0), 3, initial),
        (DLF(), 3, logits),
        (DLF(), 3, initial[:, :0]),  # who has never said where it began has moved nowhere
        (DLF(strength=0.0), 3, initial),
    ):
        said = knowledge_of(logits[:rows], payload={"initial": list(sent[:rows])})
        assert_allclose(strategy.fuse(said, {}).targets, softmax(logits[:rows]), atol=1e-6)


def test_initial_predictions_are_sent_once_and_stored() -> None:
    strategy, first, second = DLF(), draw_logits(2, 4, 3), draw_logits(2, 4, 3, seed=1)
    clients = [SmallClient(logits=row) for row in draw_logits(2, 4, 3, spread=0.1, seed=2)]
    began = [client.logits() for client in clients]
    memory, targets = {}, []
    for present, logits in (([1], first), ([0, 1], second)):
        uploads = []
        for n in present:
            strategy.before_training(clients[n])
            clients[n].all_logits = logits[n]
            uploads.append(strategy.upload(clients[n]))
        extra = {"initial": [upload["initial"] for upload in uploads]}
        guidance = strategy.fuse(knowledge_of(logits[present], present, payload=extra), memory)
        memory = guidance.memory
        targets.append(guidance.targets)
    assert [len(values) for values in extra["initial"]] == [4, 0]
    assert num_bytes(uploads[1]) == 4 * 4 * 3
    assert_array_equal(memory["clients"], [0, 1])
    assert_array_equal(memory["initial"], began)
    at_once = strategy.fuse(knowledge_of(second, payload={"initial": began}), {})
    assert_allclose(targets[1], at_once.targets, atol=1e-7)
