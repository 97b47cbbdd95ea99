"""A benchmark of executors: jobs run both ways on this device."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from statistics import median

import torch

from fedkd.training.executor import Executor, LoopExecutor
from fedkd.training.fast.replay import Replays
from fedkd.training.fast.vectorised import VectorisedExecutor, kind_of
from fedkd.training.job import FitResult, TrainJob

MARGIN = 1.1
"""Least speed-up for training together: the loop needs less memory."""
BUDGET_SECONDS = 1.0
"""Most seconds of a turn of the loop of more than one step."""
MOST_STEPS = 32
TURNS = 3
DECISIVE = 2.0
"""Ratio after which one turn is enough."""
UNTIL_REPLAYED = 3
"""Steps that record, prove, and replay."""

ClockFunction = Callable[[], float]


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of a step of one client in the loop, and together with others."""

    loop: float
    vectorised: float

    @property
    def choice(self) -> str:
        """The faster executor."""
        return "vectorised" if self.loop > MARGIN * self.vectorised else "loop"


def benchmark_executors(
    jobs: Sequence[TrainJob], together: int, clock: ClockFunction = time.perf_counter, *, fast: bool = True
) -> StepSeconds | None:
    """Return the median seconds of a step both ways; None: jobs cannot run together, or one fails."""
    if len(jobs) < 2 or any(kind_of(job) is None for job in jobs):
        return None
    loop, vectorised = LoopExecutor(Replays(patience=0), fast=fast), VectorisedExecutor(together)
    longest = max(jobs, key=lambda job: len(job.arrays[0]))
    single = _timed(loop, [_cut(longest, UNTIL_REPLAYED + 1)] * 2, clock)  # the first warms up
    vectorised_first = _timed(vectorised, [_cut(job, 1) for job in jobs], clock)
    if single is None or vectorised_first is None:
        return None
    steps = max(1, min(MOST_STEPS, int(BUDGET_SECONDS / (len(jobs) * single)) if single > 0 else MOST_STEPS))
    cut = [_cut(job, steps) for job in jobs]
    times: list[tuple[float, float]] = []
    for _ in range(TURNS):
        one, other = _timed(loop, cut, clock), _timed(vectorised, cut, clock)
        if one is None or other is None:
            return None
        times.append((one, other))
        if not 1 / DECISIVE < one / max(other, 1e-12) < DECISIVE:
            break
    return StepSeconds(*(median(of_way) for of_way in zip(*times, strict=True)))


def _cut(job: TrainJob, steps: int) -> TrainJob:
    """Return the first steps of a job, with repeated samples if there are too few."""
    needed = steps * job.batch_size
    arrays = [array[:needed] for array in job.arrays]
    epochs = ceil(steps / max(1, ceil(len(arrays[0]) / job.batch_size)))
    return replace(job, arrays=arrays, epochs=epochs)


def _timed(executor: Executor, jobs: Sequence[TrainJob], clock: ClockFunction) -> float | None:
    cuda = jobs[0].arrays[0].device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    begun = clock()
    results = executor.run(jobs)
    if cuda:
        torch.cuda.synchronize()
    seconds = clock() - begun
    steps = sum(result.steps for result in results if isinstance(result, FitResult))
    failed = any(isinstance(result, Exception) for result in results)
    return None if failed or steps == 0 else seconds / steps
