"""Trainings side by side: each as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from fedkd.errors import TrainingDiverged
from fedkd.training.executor import LoopExecutor, Training, run_training, run_trainings
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.loop import fit
from fedkd.training.losses import cross_entropy
from fedkd.training.optimizer import OptimizerSpec


def network(number: int) -> nn.Linear:
    torch.manual_seed(number)
    return nn.Linear(3, 2)


def job(model: nn.Module, seed: int, factor: float = 1.0) -> TrainJob:
    generator = torch.Generator().manual_seed(seed)
    arrays = torch.randn(9, 3, generator=generator), torch.randint(0, 2, (9,), generator=generator)

    def loss(model, x, y):
        return factor * cross_entropy(model(x), y)

    return TrainJob(model, arrays, loss, OptimizerSpec("adam", 0.1), 2, 4, generator, seed)


class Watched(LoopExecutor):
    """Writes down the seeds of the jobs that it is given together."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: list[list[int]] = []

    def run(self, jobs: Sequence[TrainJob]) -> list[FitResult | Exception]:
        self.turns.append([job.seed for job in jobs])
        return super().run(jobs)


def phases(model: nn.Module, seeds: Sequence[int]) -> Training[list[FitResult]]:
    """Train for one phase after another."""
    results = []
    for seed in seeds:
        results.append((yield job(model, seed)))
    return results


def diverging(model: nn.Module) -> Training[str]:
    yield job(model, 50, factor=float("nan"))
    raise AssertionError("goes on after a job that failed")


def recovering(model: nn.Module) -> Training[str]:
    try:
        yield job(model, 60, factor=float("nan"))
    except TrainingDiverged as error:
        yield job(network(6), 61)
        return f"recovered: {error}"


def broken(model: nn.Module) -> Training[None]:
    yield job(model, 70)
    raise ZeroDivisionError("after its job")


def test_each_turn_takes_the_next_job_of_each_training():
    executor = Watched()
    trainings = [phases(network(n), seeds) for n, seeds in enumerate([(1, 2), (), (3, 4, 5), (6,)])]
    outcomes = run_trainings(trainings, executor)
    assert executor.turns == [[1, 3, 6], [2, 4], [5]]
    assert [len(results) for results in outcomes] == [2, 0, 3, 1]
    assert run_trainings([], executor) == [] and len(executor.turns) == 3


def test_parallel_and_sequential_training_equal_fit():
    seeds = [(1, 2), (3,), (4, 5, 6)]
    together, alone, plain = ([network(n) for n in range(3)] for _ in range(3))
    outcomes = run_trainings([phases(m, s) for m, s in zip(together, seeds, strict=True)], LoopExecutor())
    assert outcomes == [run_training(phases(m, s)) for m, s in zip(alone, seeds, strict=True)]
    assert outcomes == [[fit(job(m, seed)) for seed in s] for m, s in zip(plain, seeds, strict=True)]
    for models in zip(together, alone, plain, strict=True):
        assert len({model.weight.detach().numpy().tobytes() for model in models}) == 1


def test_one_failed_training_leaves_the_others_unaffected():
    executor = Watched()
    first, second, recovered, third, last = run_trainings(
        [
            phases(network(0), (1, 2)),
            diverging(network(1)),
            recovering(network(2)),
            broken(network(3)),
            phases(network(4), (3,)),
        ],
        executor,
    )
    assert executor.turns == [[1, 50, 60, 70, 3], [2, 61]]
    assert len(first) == 2 and len(last) == 1
    assert isinstance(second, TrainingDiverged) and isinstance(third, ZeroDivisionError)
    assert recovered.startswith("recovered: training loss became nan")


def test_a_single_training_raises_its_error():
    with pytest.raises(TrainingDiverged):
        run_training(diverging(network(0)))
    with pytest.raises(ZeroDivisionError) as caught:
        run_training(broken(network(0)))
    assert caught.traceback[-1].name == "broken"


def test_an_interruption_is_not_recorded_as_an_outcome():
    def interrupted(model, x, y):
        raise KeyboardInterrupt

    interruption = TrainJob(
        network(0),
        [torch.zeros(2, 3)] * 2,
        interrupted,
        OptimizerSpec("sgd", 0.1),
        1,
        2,
        torch.Generator(),
        0,
    )

    def training() -> Training[None]:
        yield interruption

    with pytest.raises(KeyboardInterrupt):
        run_trainings([training(), phases(network(1), (1,))], LoopExecutor())
