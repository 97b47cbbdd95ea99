"""Executors of jobs, and concurrent trainings of many clients.

A client's training is a coroutine: it yields a `TrainJob`, receives the `FitResult`, and continues. An
executor can run many clients' jobs at once::

    def training(client) -> Training[float]:
        result = yield TrainJob(client.model, ...)
        client.note(result.steps)
        return result.loss

    losses = complete([training(client) for client in clients], LoopExecutor())
"""

from collections.abc import Generator, Sequence
from typing import Any, Protocol, TypeVar

from fedkd.plugins import contain_plugin
from fedkd.training.fast.replay import Replays
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.loop import fit

T = TypeVar("T")

Training = Generator[TrainJob, FitResult, T]
"""Yields jobs, receives the result of each, and returns one value."""


class Executor(Protocol):
    """Runs independent jobs."""

    def run(self, jobs: Sequence[TrainJob]) -> list[FitResult | Exception]:
        """Return each job's result or exception, in order; jobs share no model, generator or rules."""


class LoopExecutor:
    """Runs one job after the other with `fedkd.training.loop.fit`; if `fast`, records frequent steps."""

    def __init__(self, replays: Replays | None = None, *, fast: bool = True) -> None:
        self._replays = (replays or Replays()) if fast else None

    def run(self, jobs: Sequence[TrainJob]) -> list[FitResult | Exception]:
        return [self._attempt(job) for job in jobs]

    def _attempt(self, job: TrainJob) -> FitResult | Exception:
        try:
            with contain_plugin():
                return fit(job, self._replays)
        except Exception as error:
            return error


def run_trainings(trainings: Sequence[Training[T]], executor: Executor) -> list[T | Exception]:
    """Run trainings concurrently to their ends, and return their values.

    In every turn the executor gets the next job of each. A job's exception is raised inside its training; an
    uncaught exception is the training's outcome. Trainings share no model.
    """
    outcomes: dict[int, T | Exception] = {}
    results: dict[int, Any] = dict.fromkeys(range(len(trainings)))
    while results:
        jobs: dict[int, TrainJob] = {}
        for number, result in results.items():
            try:
                with contain_plugin():
                    if isinstance(result, Exception):
                        jobs[number] = trainings[number].throw(result)
                    else:  # the first message of a coroutine is None
                        jobs[number] = trainings[number].send(result)
            except StopIteration as end:
                outcomes[number] = end.value
            except Exception as error:
                outcomes[number] = error
        results = dict(zip(jobs, executor.run(list(jobs.values())), strict=True)) if jobs else {}
    return [outcomes[number] for number in range(len(trainings))]


def run_training(training: Training[T], executor: Executor | None = None) -> T:
    """Run one training to its end, by default in the loop; return its value or raise."""
    (outcome,) = run_trainings([training], executor or LoopExecutor())
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
