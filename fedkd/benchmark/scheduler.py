"""Runs cells, or trials of a search, side by side on Ray, or one after the other in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fedkd.benchmark.places import check_places
from fedkd.benchmark.worker import Outcome, run_cell
from fedkd.engine.ray_cluster import RayCluster, connect
from fedkd.engine.ray_placement import count_actors, gpu_share
from fedkd.errors import EngineLost
from fedkd.scenario.schema import Engine
from fedkd.signals import stop_signals
from fedkd.supervisor import if_lost

POLL_SECONDS = 0.2
GO_ON = "cells that are done stay so; go on with the same command"
Job = tuple[str, str]
"""Scenario as JSON, and run folder: the arguments of `run_cell`."""
Work = Callable[[str, str, float | None], Outcome]
"""What is done with a job, called with its GPUs as well: `run_cell`, or the like; it travels to workers."""


class Watcher:
    """Told what happens to jobs, by their number. The hooks do nothing until a subclass overrides them."""

    def slots(self, count: int) -> None:
        """At most `count` jobs run at a time."""

    def started(self, job: int) -> None:
        """A job has been handed out."""

    def finished(self, job: int, outcome: Outcome) -> None:
        """A job is over."""

    def message(self, text: str) -> None:
        """A line for the user."""


def run_in_turn(jobs: Sequence[Job], watcher: Watcher, work: Work = run_cell) -> dict[int, Outcome]:
    """Run jobs in this process, one after the other.

    Returns:
        The outcome of every job that ran. Ctrl-C lets the running job save its state; no other one starts.
    """
    watcher.slots(1)
    outcomes: dict[int, Outcome] = {}
    for number, (scenario_json, folder) in enumerate(jobs):
        watcher.started(number)
        outcomes[number] = work(scenario_json, folder, None)
        watcher.finished(number, outcomes[number])
        if outcomes[number].status == "interrupted":
            break
    return outcomes


def run_on_ray(jobs: Sequence[Job], engine: Engine, watcher: Watcher) -> dict[int, Outcome]:
    """Run jobs as Ray tasks, as many at a time as fit the cluster.

    Returns:
        The outcome of every job that ran. The first Ctrl-C lets the running jobs save their state and no
        other one starts; the second stops at once.

    Raises:
        UserError: There is no such cluster, not even one job fits it, or a node lacks what the jobs need.
        EngineLost: Ray does not come up, or breaks down.
    """
    with on_ray(engine, watcher) as runner:
        return runner.run(jobs, watcher)


@contextmanager
def on_ray(engine: Engine, watcher: Watcher) -> Iterator[RayRunner]:
    """Start Ray, or join the cluster, for several calls to run jobs; it is left after the block.

    Raises:
        UserError: As `run_on_ray`.
        EngineLost: As `run_on_ray`.
    """
    watcher.message("starting Ray")
    if_lost(GO_ON)
    cluster = connect(engine)
    try:
        yield RayRunner(engine, cluster)
    except EngineLost as error:
        raise EngineLost(f"{error.message}; {GO_ON}") from error
    finally:
        cluster.close()


class RayRunner:
    """Runs jobs as Ray tasks on one cluster.

    Args:
        engine: What a job reserves.
        cluster: Where they run.
    """

    def __init__(self, engine: Engine, cluster: RayCluster) -> None:
        self._engine = engine
        self._cluster = cluster
        self._is_up = False

    def run(self, jobs: Sequence[Job], watcher: Watcher, work: Work = run_cell) -> dict[int, Outcome]:
        """Run jobs, as many at a time as fit the cluster; see `run_on_ray`."""
        engine, cluster = self._engine, self._cluster
        slots = count_actors(engine, cluster, len(jobs))
        share = gpu_share(engine, cluster, len(jobs))
        check_places(jobs, engine, cluster, share)
        with cluster.watch.guard():
            tasks = _Tasks(jobs, engine, share, watcher, cluster, work)
            if not self._is_up:
                tasks.wait_for_a_worker()
                self._is_up = True
            watcher.slots(slots)
            return tasks.run(slots)


class _Tasks:
    """The jobs of one bench on Ray: what waits, what runs."""

    def __init__(
        self,
        jobs: Sequence[Job],
        engine: Engine,
        gpus: float,
        watcher: Watcher,
        cluster: RayCluster,
        work: Work,
    ) -> None:
        import ray

        self._watch = cluster.watch
        self._patience = engine.start_timeout
        # A job that dies is recorded, not repeated behind the user's back.
        options = {"num_cpus": engine.cpus_per_actor, "num_gpus": gpus, "max_retries": 0}
        self._task: Any = ray.remote(_do).options(**options)
        self._work = work
        self._nothing: Any = ray.remote(_nothing).options(**options)
        self._jobs = jobs
        self._gpus = gpus
        self._watcher = watcher
        self._running: dict[Any, int] = {}
        self._outcomes: dict[int, Outcome] = {}

    def wait_for_a_worker(self) -> None:
        """Return when a process for cells is up; a cell that waits for one looks like one that runs.

        Raises:
            EngineLost: None comes up.
        """
        import ray

        waiting = [self._nothing.remote()]
        deadline = time.monotonic() + self._patience
        while waiting:
            done, waiting = ray.wait(waiting, timeout=POLL_SECONDS)
            self._watch.check()
            for reference in done:
                try:
                    ray.get(reference)
                except ray.exceptions.RayError as error:
                    self._watch.check_after_failure()
                    raise EngineLost(f"no process for cells came up: {_first_line(error)}") from error
            if waiting and time.monotonic() > deadline:
                raise EngineLost(
                    f"no process for cells came up within {self._patience:g} s (engine.start_timeout)"
                )

    def run(self, slots: int) -> dict[int, Outcome]:
        """Run every job, or, after a signal, let those finish that are running."""
        waiting = iter(enumerate(self._jobs))
        with stop_signals(self._on_signal) as stop:
            try:
                self._start(waiting, slots)
                while self._running:
                    done = self._collect(stop.is_set())
                    if not stop.is_set():
                        self._start(waiting, done)
            except EngineLost:
                if not stop.is_set():  # else whoever signalled the whole process group stopped Ray's too
                    raise
            finally:
                for reference in () if self._watch.lost else self._running:
                    self._cancel(reference, force=True)
        return self._outcomes

    def _start(self, waiting: Iterator[tuple[int, Job]], count: int) -> None:
        for _, (number, job) in zip(range(count), waiting, strict=False):
            self._running[self._task.remote(self._work, *job, self._gpus)] = number
            self._watcher.started(number)

    def _collect(self, stopping: bool) -> int:
        import ray

        done, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        if not done:
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=POLL_SECONDS)
        self._watch.check()
        for reference in done:
            outcome = self._outcome(reference, stopping)
            number = self._running.pop(reference)
            self._outcomes[number] = outcome
            self._watcher.finished(number, self._outcomes[number])
        return len(done)

    def _on_signal(self) -> None:
        self._watcher.message("stopping after the round of each running cell; Ctrl-C again stops at once")
        for reference in self._running:
            self._cancel(reference, force=False)

    @staticmethod
    def _cancel(reference: Any, *, force: bool) -> None:
        import ray

        # Not forced, it interrupts the worker's main thread, where the runner saves and stops.
        ray.cancel(reference, force=force)

    def _outcome(self, reference: Any, stopping: bool) -> Outcome:
        import ray

        try:
            return ray.get(reference)
        except ray.exceptions.TaskCancelledError:
            return Outcome("interrupted")
        except ray.exceptions.RayError as error:
            if stopping:
                return Outcome("interrupted")
            self._watch.check_after_failure()
            return Outcome(
                "failed", error=f"its Ray worker died: {type(error).__name__}: {_first_line(error)}"
            )


def _do(work: Work, scenario_json: str, folder: str, gpus: float | None) -> Outcome:
    return work(scenario_json, folder, gpus)


def _nothing() -> None:
    """Do what every worker can."""


def _first_line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return str(error).strip().splitlines()[0]
