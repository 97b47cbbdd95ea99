"""Learning rates and the choice of optimiser."""

from __future__ import annotations

import math

import pytest
import torch

from fedkd.errors import UserError
from fedkd.training.optimizer import OptimizerSpec, make_optimizer, round_lr


def test_cosine_falls_from_lr_towards_zero():
    assert round_lr(0.1, "cosine", 1, 4) == 0.1
    assert round_lr(0.1, "cosine", 3, 4) == pytest.approx(0.05)
    assert round_lr(0.1, "cosine", 2, 4) == pytest.approx(0.05 * (1 + math.sqrt(0.5)))
    rates = [round_lr(0.1, "cosine", r, 10) for r in range(1, 11)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0
    assert {round_lr(0.1, "constant", r, 10) for r in range(1, 11)} == {0.1}


def test_frozen_parameters_are_left_out():
    weight = torch.nn.Parameter(torch.ones(2))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = make_optimizer(OptimizerSpec("sgd", 0.1, weight_decay=1.0), [weight, frozen])
    assert [p is weight for group in optimizer.param_groups for p in group["params"]] == [True]


def test_unknown_names_are_the_users_mistake():
    with pytest.raises(UserError, match="did you mean 'adam'") as caught:
        make_optimizer(OptimizerSpec("adamm", 0.1), [torch.nn.Parameter(torch.ones(1))])
    assert caught.value.key == "training.optimizer"
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        round_lr(0.1, "cosin", 1, 2)
