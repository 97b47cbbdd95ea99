"""FedNTD against its formula in float64, and what its term leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from local_steps import OneClient, batch_of, cross_entropy_by_hand, logits_by_hand, loss_of, small_model

from fedkd.fusion.weights.fedntd import FedNTD, not_true
from fedkd.training.weights import weights_of


def by_hand(now, received, x, y, beta, temperature) -> float:
    total = 0.0
    for own, theirs, label in zip(logits_by_hand(now, x), logits_by_hand(received, x), y, strict=True):
        p = np.exp(np.delete(theirs, label) / temperature)
        q = np.exp(np.delete(own, label) / temperature)
        p, q = p / p.sum(), q / q.sum()
        total += (p * np.log(p / q)).sum()
    distilled = temperature**2 * total / len(y)
    return cross_entropy_by_hand(logits_by_hand(now, x), y) + beta * distilled


@pytest.mark.parametrize(("beta", "temperature"), [(1.0, 1.0), (0.4, 3.0)])
def test_the_loss_equals_that_of_the_paper(beta, temperature):
    strategy, client = FedNTD(beta=beta, temperature=temperature), OneClient(small_model(1))
    step, now = strategy.local_step(client, {}), small_model(2)
    batch = batch_of(now)
    expected = by_hand(
        weights_of(now), client.weights(), batch.inputs.numpy(), batch.labels.numpy(), beta, temperature
    )
    assert step(batch).item() == pytest.approx(expected, rel=1e-5)


def test_the_term_has_no_gradient_in_the_true_logit():
    client, now = OneClient(small_model(1)), small_model(2)
    batch = batch_of(now)
    without = batch_of(now)
    loss_of(FedNTD(beta=3.0), client, batch).backward()
    loss_of(FedNTD(beta=0.0), client, without).backward()
    term = (batch.logits.grad - without.logits.grad).numpy()
    rows = np.arange(len(term))
    assert (np.abs(term[rows, batch.labels]) < 1e-9).all()
    assert (np.abs(term).sum(axis=1) > 1e-6).all()


def test_before_the_first_step_the_term_is_zero():
    model = small_model(1)
    batch = batch_of(model)
    with_term, without = (loss_of(FedNTD(beta=b), OneClient(model), batch).item() for b in (5.0, 0.0))
    assert with_term == pytest.approx(without, rel=1e-6)


def test_the_true_column_is_dropped():
    logits = torch.arange(12.0).reshape(3, 4)
    assert not_true(logits, torch.tensor([0, 2, 3])).tolist() == [[1, 2, 3], [4, 5, 7], [8, 9, 10]]
