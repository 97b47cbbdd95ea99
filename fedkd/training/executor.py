"""Who runs jobs, and how the trainings of many clients give them jobs to run together.

What a client does to train is one coroutine: it yields a `TrainJob`, is sent the `FitResult`, and goes on
from there, to a next job or to its end. So its code reads from top to bottom, and still an executor may take
the jobs of many clients at once::

    def training(client) -> Training[float]:
        result = yield TrainJob(client.model, ...)
        client.note(result.steps)
        return result.loss

    losses = complete([training(client) for client in clients], LoopExecutor())
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Protocol, TypeVar

from fedkd.plugins import contained
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.loop import fit
from fedkd.training.replay import Replays

T = TypeVar("T")

Training = Generator[TrainJob, FitResult, T]
"""Yields jobs one after another, is sent what came of each, and returns what came of all."""


class Executor(Protocol):
    """Runs jobs that have nothing to do with one another."""

    def run(self, jobs: Sequence[TrainJob]) -> list[FitResult | Exception]:
        """Return what came of each job, in their order; an exception where one failed.

        Args:
            jobs: No two share a model, a generator or rules.
        """


class LoopExecutor:
    """Runs one job after the other, in their order, with `fedkd.training.loop.fit`.

    Steps of kinds that it takes often are recorded and replayed, which changes nothing but the time.

    Args:
        replays: The recordings; None: there are none yet.
        fast: Whether steps are recorded at all.
    """

    def __init__(self, replays: Replays | None = None, *, fast: bool = True) -> None:
        self._replays = (replays or Replays()) if fast else None

    def run(self, jobs: Sequence[TrainJob]) -> list[FitResult | Exception]:
        """Return what came of each job (see `Executor.run`)."""
        return [self._attempt(job) for job in jobs]

    def _attempt(self, job: TrainJob) -> FitResult | Exception:
        try:
            with contained():
                return fit(job, self._replays)
        except Exception as error:
            return error


def complete(trainings: Sequence[Training[T]], executor: Executor) -> list[T | Exception]:
    """Bring trainings to their ends side by side, and return what each returned.

    In every turn the executor is given the next job of each training that has one, in the order of
    `trainings`. An exception belongs to one training alone: that of a job is raised in it, where it yielded
    the job, and one that leaves it is its outcome. The others go on.

    Args:
        trainings: None of them begun. They share no model, because all are under way at once.
        executor: Runs their jobs.
    """
    outcomes: dict[int, T | Exception] = {}
    results: dict[int, FitResult | Exception | None] = dict.fromkeys(range(len(trainings)))
    while results:
        jobs: dict[int, TrainJob] = {}
        for number, result in results.items():
            try:
                with contained():
                    jobs[number] = _advance(trainings[number], result)
            except StopIteration as end:
                outcomes[number] = end.value
            except Exception as error:
                outcomes[number] = error
        results = dict(zip(jobs, executor.run(list(jobs.values())), strict=True)) if jobs else {}
    return [outcomes[number] for number in range(len(trainings))]


def _advance(training: Training[T], result: FitResult | Exception | None) -> TrainJob:
    """Return a training's next job, given what came of its last one; None: there was none."""
    if result is None:
        return next(training)
    if isinstance(result, Exception):
        return training.throw(result)
    return training.send(result)


def complete_alone(training: Training[T], executor: Executor | None = None) -> T:
    """Bring one training to its end, and return what it returned.

    Args:
        training: Not begun.
        executor: Runs its jobs; None: the loop.

    Raises:
        Exception: What the training raised, its jobs included.
    """
    (outcome,) = complete([training], executor or LoopExecutor())
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
