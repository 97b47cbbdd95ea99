"""`mst`: gates route samples to teachers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from rounds import draw_logits, knowledge_of

from fedkd.fusion.distillation.gate import Gate, first_choices, gate_loss, largest, new_gate, train_gate
from fedkd.fusion.distillation.mst import MST
from fedkd.fusion.math.adam import Adam
from fedkd.fusion.math.probabilities import softmax
from fedkd.randomness import numpy_generator
from fedkd.training.fast.uncompiled import uncompiled_class

LABELS = numpy_generator(0, "labels").integers(0, 3, 12)


def test_gate_loss_and_gradient_equal_loops_and_finite_differences() -> None:
    rng = np.random.default_rng(0)
    inputs, losses = rng.normal(size=(5, 3)), rng.uniform(0, 3, (5, 4))
    gate = Gate(rng.normal(size=(3, 6)), rng.normal(size=6), rng.normal(size=(6, 4)), rng.normal(size=4))

    def by_loops(gate: Gate) -> float:
        shares = []
        for x in inputs:
            hidden = [max(0.0, float(x @ gate.into[:, h] + gate.into_bias[h])) for h in range(6)]
            said = [sum(hidden[h] * gate.out[h, m] for h in range(6)) + gate.out_bias[m] for m in range(4)]
            powers = [math.exp(value) for value in said]
            shares.append([value / sum(powers) for value in powers])
        first = [sum(max(row) == row[m] for row in shares) / 5 for m in range(4)]
        paid = sum(row[m] * cost[m] for row, cost in zip(shares, losses, strict=True) for m in range(4)) / 5
        return paid + 0.3 * 4 * sum(first[m] * sum(row[m] for row in shares) / 5 for m in range(4))

    value, gradient = gate_loss(gate, inputs, losses, 0.3)
    assert value == pytest.approx(by_loops(gate), rel=1e-12)
    for layer, found in zip(gate, gradient, strict=True):
        for place in np.ndindex(layer.shape):
            kept = layer[place]
            layer[place] = kept + 1e-6
            above = by_loops(gate)
            layer[place] = kept - 1e-6
            assert found[place] == pytest.approx((above - by_loops(gate)) / 2e-6, rel=1e-5, abs=1e-8)
            layer[place] = kept


def test_adam_equals_torchs() -> None:
    start, wanted = np.array([1.0, -2.0, 0.5]), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    wanted.requires_grad_()
    theirs, ours, arrays = uncompiled_class(torch.optim.Adam)([wanted], lr=0.1), Adam(0.1), [start]
    for _ in range(5):
        theirs.zero_grad()
        (wanted**4).sum().backward()
        theirs.step()
        arrays = ours.step(arrays, [4 * arrays[0] ** 3])
    assert_allclose(arrays[0], wanted.detach().numpy(), rtol=1e-12)
    assert_array_equal(start, [1.0, -2.0, 0.5])


def test_tied_shares_stay_together() -> None:
    shares = np.array([[0.4, 0.3, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]])
    assert_allclose(largest(shares, 1), [[1, 0, 0, 0], [0.25] * 4, [1, 0, 0, 0]])
    assert_allclose(largest(shares, 2), [[4 / 7, 3 / 7, 0, 0], [0.25] * 4, [0.7, 0.1, 0.1, 0.1]])
    assert_array_equal(largest(shares, 9), shares)
    assert_allclose(first_choices(shares), [2 / 3 + 1 / 12, 1 / 12, 1 / 12, 1 / 12])


def test_the_balance_weight_spreads_the_use_of_teachers() -> None:
    rng = np.random.default_rng(0)
    inputs, losses = rng.normal(size=(200, 3)), rng.uniform(0, 1, (200, 4)) + np.arange(4) / 2
    gates = {
        balance: train_gate(
            new_gate(3, 4, np.random.default_rng(1)), inputs, losses, balance=balance, steps=300, lr=0.01
        )
        for balance in (0.0, 1e6)
    }
    assert gates[0.0].shares(inputs).mean(axis=0)[0] > 0.9
    assert_allclose(gates[1e6].shares(inputs).mean(axis=0), 0.25, atol=0.05)


def test_samples_are_routed_to_knowledgeable_teachers() -> None:
    """Two teachers, each right in one half of the classes; the client knows which half a sample is of."""
    labels = np.arange(40) % 4
    half, right = labels // 2, 6.0 * np.eye(4)[labels]
    wrong = 6.0 * np.eye(4)[(labels + 2) % 4]
    unsure = 3.0 * np.repeat(np.eye(2)[half], 2, axis=1)
    logits = np.stack(
        [unsure, np.where(half[:, None] == 0, right, wrong), np.where(half[:, None] == 1, right, wrong)]
    ).astype(np.float32)
    routed = MST(top=1, temperature=1.0, steps=300).fuse(knowledge_of(logits, labels=labels), {})
    assert_array_equal(routed.targets[0].argmax(axis=-1), labels)
    assert_allclose(routed.weights[0], [0, 0.5, 0.5], atol=1e-12)


def test_a_single_neighbour_teaches_every_sample() -> None:
    logits = draw_logits(4, 12, 3)
    guidance = MST(neighbours=1, temperature=2.0).fuse(knowledge_of(logits, labels=LABELS), {})
    q = softmax(logits)
    for n in range(4):
        apart = [(q[n] * np.log(q[n] / q[m])).sum() if m != n else np.inf for m in range(4)]
        assert_allclose(guidance.targets[n], softmax(logits, 2.0)[np.argmin(apart)], atol=1e-6)


def test_a_single_client_learns_from_itself_and_labels_are_optional() -> None:
    logits = draw_logits(1, 12, 3)
    alone = MST(temperature=1.0).fuse(knowledge_of(logits, labels=LABELS), {})
    assert_array_equal(alone.targets, softmax(logits))
    assert (
        MST().capabilities.needs == {"transfer_labels"}
        and MST(judge="consensus").capabilities.needs == frozenset()
    )
    untrained = MST(steps=0, neighbours=2, temperature=1.0, judge="consensus")
    told = untrained.fuse(knowledge_of(draw_logits(3, 12, 3)), {})
    assert_allclose(told.weights, (1 - np.eye(3)) / 2)
