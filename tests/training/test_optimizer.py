"""Learning rates of rounds, and wrong names and numbers."""

from __future__ import annotations

import math

import pytest
import torch

from fedkd.errors import UserError
from fedkd.training.optimizer import LrSchedule, OptimizerSpec, make_optimizer, round_lr, step_schedule


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (LrSchedule(), [0.2, 0.2, 0.2, 0.2, 0.2]),
        (LrSchedule("cosine"), [0.1 * (1 + math.cos(math.pi * r / 5)) for r in range(5)]),
        (LrSchedule("step", decay=0.1, step_rounds=2), [0.2, 0.2, 0.02, 0.02, 0.002]),
        (LrSchedule("step", decay=0.5), [0.2, 0.1, 0.05, 0.025, 0.0125]),
        (LrSchedule("exponential", decay=0.9), [0.2, 0.18, 0.162, 0.1458, 0.13122]),
        (LrSchedule("step", step_rounds=4), [0.2, 0.2, 0.2, 0.2, 0.02]),
        (LrSchedule("exponential"), [0.2 * 0.99**r for r in range(5)]),
        (LrSchedule("exponential", decay=1.0), [0.2, 0.2, 0.2, 0.2, 0.2]),
    ],
)
def test_learning_rates_of_rounds_follow_the_schedule(schedule, rates):
    found = [round_lr(0.2, schedule, r, 5) for r in range(1, 6)]
    assert found == pytest.approx(rates, rel=1e-12)
    assert found[0] == 0.2


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"name": "cosin"}, "training.schedule", "did you mean 'cosine'"),
        ({"decay": 0.0}, "training.lr_decay", "must be > 0 and ≤ 1, got 0.0"),
        ({"decay": 1.1}, "training.lr_decay", "got 1.1"),
        ({"decay": math.nan}, "training.lr_decay", "got nan"),
        ({"step_rounds": 0}, "training.lr_step_rounds", "must be ≥ 1, got 0"),
    ],
)
def test_a_wrong_schedule_is_a_user_error(options, key, message):
    with pytest.raises(UserError, match=message) as caught:
        LrSchedule(**options)
    assert caught.value.key == key


def test_unknown_optimisers_and_schedules_are_refused():
    optimizer = make_optimizer(OptimizerSpec("sgd", 0.1), [torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="no schedule of steps named 'step'"):
        step_schedule(optimizer, "step", 3)
    with pytest.raises(UserError, match="did you mean 'adam'") as caught:
        make_optimizer(OptimizerSpec("adamm", 0.1), [torch.nn.Parameter(torch.ones(1))])
    assert caught.value.key == "training.optimizer"
