"""The measurement of the faster executor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedkd.training.fast.benchmark_executors import MARGIN, StepSeconds, benchmark_executors
from fedkd.training.job import TrainJob
from fedkd.training.losses import cross_entropy
from fedkd.training.optimizer import OptimizerSpec

BATCH = 4


def clock(*durations: float) -> Callable[[], float]:
    """Return a clock on which what is timed n-th takes the n-th duration, and the last one from then on."""
    now, calls = 0.0, 0

    def tell() -> float:
        nonlocal now, calls
        if calls % 2:
            now += durations[min(calls // 2, len(durations) - 1)]
        calls += 1
        return now

    return tell


def jobs(number: int = 3, samples: int = 40) -> list[TrainJob]:
    found = []
    for seed in range(number):
        draws = torch.Generator().manual_seed(seed)
        x, y = torch.randn(samples, 3, generator=draws), torch.randint(0, 2, (samples,), generator=draws)
        torch.manual_seed(seed)
        found.append(
            TrainJob(
                nn.Linear(3, 2),
                (x, y),
                lambda model, x, y: cross_entropy(model(x), y),
                OptimizerSpec("sgd", 0.1),
                1,
                BATCH,
                draws,
                seed,
                kind="k",
                replayable=True,
            )
        )
    return found


def measured(durations: Sequence[float], **options) -> StepSeconds | None:
    return benchmark_executors(jobs(**options), together=3, clock=clock(*durations))


def test_step_time_is_turn_time_divided_by_steps_and_clients():
    # Two jobs of 4 steps each take 8 × 0.05 s: so a turn may have 1 / (3 × 0.05) = 6 steps, of 3 clients.
    found = measured([0.4, 9.0, 18.0, 6.0])
    assert found == StepSeconds(loop=1.0, vectorised=pytest.approx(1 / 3))
    assert found.choice == "vectorised"


def test_the_loop_is_the_default_unless_clearly_slower():
    assert StepSeconds(1.0, 1.0).choice == "loop"
    assert StepSeconds(1.0, 0.99 / MARGIN).choice == "vectorised"
    assert StepSeconds(1.0, 1.01 / MARGIN).choice == "loop"


def test_close_results_are_decided_by_the_median_of_three_turns():
    turns = [12.0, 10.0, 1.0, 11.0, 13.0, 90.0]
    found = measured([0.4, 9.0, *turns])
    # The second turn would be decisive: only two are taken, and the median is between them.
    assert found == StepSeconds(pytest.approx(6.5 / 18), pytest.approx(10.5 / 18))
    close = [12.0, 10.0, 11.0, 12.0, 90.0, 100.0]
    assert measured([0.4, 9.0, *close]) == StepSeconds(pytest.approx(12 / 18), pytest.approx(12 / 18))


def test_slow_steps_are_measured_one_by_one():
    found = measured([800.0, 9.0, 300.0, 100.0])
    assert found == StepSeconds(100.0, pytest.approx(100 / 3))


@pytest.mark.parametrize(
    "change",
    [{"kind": None}, {"accumulate": 2}, {"lr_schedule": "cosine"}],
    ids=["unlike", "accumulate", "lr"],
)
def test_unvectorisable_clients_are_not_measured(change):
    def never() -> float:
        raise AssertionError("nothing is to be timed")

    assert benchmark_executors([replace(job, **change) for job in jobs()], 3, never) is None
    assert benchmark_executors(jobs(number=1), 3, never) is None


def test_failed_jobs_give_no_decision():
    broken = [replace(job, arrays=(job.arrays[0] * float("nan"), job.arrays[1])) for job in jobs()]
    assert benchmark_executors(broken, 3, clock(1.0)) is None


def test_measured_steps_are_executed():
    run = jobs(samples=BATCH)  # fewer than the steps need: its only batch again and again
    before = [job.model.weight.detach().clone() for job in run]
    assert benchmark_executors(run, 3) is not None
    assert all(not torch.equal(job.model.weight, old) for job, old in zip(run, before, strict=True))
