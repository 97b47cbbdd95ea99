"""Runs the cells of a bench or the trials of a search, in this process or on Ray."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from fedkd.benchmark.cells import Cell, data_key, name_cell_in_error
from fedkd.benchmark.finished import find_damage
from fedkd.benchmark.places import POLL_SECONDS, await_all, check_all_nodes, first_line
from fedkd.benchmark.progress import BenchProgress
from fedkd.benchmark.worker import CellOutcome, run_cell
from fedkd.data import load_data
from fedkd.engine import (
    RayCluster,
    connect_ray,
    count_actors,
    gpu_share,
    set_loss_message,
    watch_stop_signals,
)
from fedkd.errors import EngineLost, Interrupted, UserError
from fedkd.plan import resolve_plan
from fedkd.scenario import Engine
from fedkd.simulation import check_models_and_exchange
from fedkd.storage import write_text_atomically
from fedkd.tracking import check_loggers, explain_disk_errors, lock_run_folder

GO_ON = "finished cells are kept; go on with the same command"
Jobs = Mapping[Cell, tuple[str, str]]
"""Cell to its scenario as JSON and its run folder: the arguments of `run_cell`."""
Work = Callable[[str, str, float | None], CellOutcome]
"""Runs a job on its GPUs, like `run_cell`; workers receive it."""


class CellCheck:
    """Loads every data set and builds every model of cells once, for one seed."""

    def __init__(self, file: str, tell: Callable[[str], None] | None = None) -> None:
        self._file = file
        self._tell = tell
        self._checked: set[str] = set()

    def check(self, cells: Sequence[Cell]) -> None:
        loaded, data = "", None
        for cell in cells:
            scenario = cell.scenario
            dealt = data_key(scenario)
            learner = scenario.continual.model_dump_json() if scenario.continual else ""
            tracking = scenario.tracking.model_dump_json()
            models = [group.model_dump_json() for group in scenario.clients]
            kind = "".join([dealt, *models, learner, tracking])
            if kind in self._checked:
                continue
            self._checked.add(kind)
            try:
                check_loggers(scenario)
                if data is None or dealt != loaded:
                    loaded, data = dealt, load_data(scenario, self._tell)
                for _ in check_models_and_exchange(resolve_plan(scenario, written=False), data):
                    continue
            except UserError as error:
                raise name_cell_in_error(error, cell.label, self._file) from error


class Scheduler:
    """Runs cells that are not done yet; all calls share one set of worker processes."""

    def __init__(self, runs: Path, file: str, parallel: bool, progress: BenchProgress) -> None:
        self.progress = progress
        self._runs = runs
        self._check = CellCheck(file, progress.message)
        self._parallel = parallel
        self._ray: RayRunner | None = None
        self._stack = ExitStack()

    def run(
        self,
        cells: Sequence[Cell],
        work: Work = run_cell,
        damaged: Callable[[Path], str | None] = find_damage,
    ) -> dict[Cell, CellOutcome]:
        """Check cells, then run them; a damaged cell starts again. A signal raises `KeyboardInterrupt`."""
        self._check.check(cells)
        for cell in cells:
            folder = self._runs / cell.folder_name
            if reason := damaged(folder):
                self.progress.message(
                    f"{cell.label} is damaged and runs again: {reason} (runs/{folder.name})"
                )
                shutil.rmtree(folder)
        jobs = {cell: (cell.scenario.model_dump_json(), str(self._runs / cell.folder_name)) for cell in cells}
        if self._parallel:
            if self._ray is None:
                self._ray = self._stack.enter_context(on_ray(cells[0].scenario.engine, self.progress))
            outcomes = self._ray.run(jobs, work)
        else:
            outcomes = run_in_turn(jobs, self.progress, work)
        if len(outcomes) < len(jobs) or any(each.status == "interrupted" for each in outcomes.values()):
            raise KeyboardInterrupt
        return outcomes

    def close(self) -> None:
        """Stop the workers and release the terminal."""
        self._stack.close()
        self.progress.closed()


@contextmanager
def open_scheduler(
    folder: Path, file: str, dumped: tuple[str, str], parallel: bool, progress: Callable[[], BenchProgress]
) -> Iterator[Scheduler]:
    """Lock the folder of a bench or a search while its cells run.

    `dumped` is the name and the text of the file that describes it. A signal raises `Interrupted`.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    try:
        (folder / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}", key="--out") from error
    with lock_run_folder(folder), explain_disk_errors(folder, lambda: f"free disk space; {GO_ON}"):
        write_text_atomically(folder / dumped[0], dumped[1])
        scheduler = Scheduler(folder / "runs", file, parallel, progress())
        try:
            yield scheduler
        except KeyboardInterrupt:
            told = f"stopped with {scheduler.progress.counts()}; go on with the same command"
            raise Interrupted(told) from None
        finally:
            scheduler.close()


def run_in_turn(jobs: Jobs, progress: BenchProgress, work: Work = run_cell) -> dict[Cell, CellOutcome]:
    """Run jobs one after the other until Ctrl-C; return the outcomes of those that ran."""
    progress.slots(1)
    outcomes: dict[Cell, CellOutcome] = {}
    for cell, (scenario_json, folder) in jobs.items():
        progress.started(cell)
        outcomes[cell] = work(scenario_json, folder, None)
        progress.finished(cell, outcomes[cell])
        if outcomes[cell].status == "interrupted":
            break
    return outcomes


class RayRunner:
    """Runs jobs as Ray tasks on one cluster, as many at a time as fit."""

    def __init__(self, engine: Engine, cluster: RayCluster, progress: BenchProgress) -> None:
        self._engine = engine
        self._cluster = cluster
        self._progress = progress
        self._is_up = False
        self._running: dict[Any, Cell] = {}

    def run(self, jobs: Jobs, work: Work = run_cell) -> dict[Cell, CellOutcome]:
        """Run jobs; after a signal running jobs save their state, after a second one they stop."""
        import ray

        watch = self._cluster.watch
        slots = count_actors(self._engine, self._cluster, len(jobs))
        gpus = gpu_share(self._engine, self._cluster, len(jobs))
        check_all_nodes(list(jobs.values()), self._engine, self._cluster, gpus)
        # Failed jobs are recorded, not silently repeated.
        options = {"num_cpus": self._engine.cpus_per_actor, "num_gpus": gpus, "max_retries": 0}
        task: Any = ray.remote(_do).options(**options)
        waiting = iter(jobs.items())
        outcomes: dict[Cell, CellOutcome] = {}

        def start(count: int) -> None:
            for cell, job in islice(waiting, count):
                self._running[task.remote(work, *job, gpus)] = cell
                self._progress.started(cell)

        with watch.guard():
            if not self._is_up:
                self._wait_for_a_worker(options)
                self._is_up = True
            self._progress.slots(slots)
            with watch_stop_signals(self._on_signal) as stop:
                try:
                    start(slots)
                    while self._running:
                        ended = self._collect(stop.is_set())
                        outcomes |= ended
                        if not stop.is_set():
                            start(len(ended))
                except EngineLost:
                    if not stop.is_set():  # else the signal went to the whole process group, Ray's included
                        raise
                finally:
                    for reference in () if watch.lost else self._running:
                        ray.cancel(reference, force=True)
        return outcomes

    def _wait_for_a_worker(self, options: Mapping[str, Any]) -> None:
        """Wait until a process for cells is up; waiting cells look like running ones."""
        import ray

        nothing: Any = ray.remote(_nothing).options(**options)
        told = "no worker process started"
        await_all([nothing.remote()], self._engine, self._cluster, lambda _: told, told)

    def _collect(self, stopping: bool) -> dict[Cell, CellOutcome]:
        """Return the outcomes of jobs that ended, having waited a moment for one."""
        import ray

        done, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        if not done:
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=POLL_SECONDS)
        self._cluster.watch.check()
        outcomes = {}
        for reference in done:
            outcome = self._outcome(reference, stopping)
            cell = self._running.pop(reference)
            outcomes[cell] = outcome
            self._progress.finished(cell, outcome)
        return outcomes

    def _outcome(self, reference: Any, stopping: bool) -> CellOutcome:
        import ray

        try:
            return ray.get(reference)
        except ray.exceptions.TaskCancelledError:
            return CellOutcome("interrupted")
        except ray.exceptions.RayError as error:
            if stopping:
                return CellOutcome("interrupted")
            self._cluster.watch.check_after_failure()
            told = f"its Ray worker died: {type(error).__name__}: {first_line(error)}"
            return CellOutcome("failed", error=told)

    def _on_signal(self) -> None:
        import ray

        self._progress.message("stopping after the round of each running cell; Ctrl-C again stops at once")
        for reference in self._running:
            # Not forced: it interrupts the worker's main thread, and the runner saves and stops.
            ray.cancel(reference, force=False)


@contextmanager
def on_ray(engine: Engine, progress: BenchProgress) -> Iterator[RayRunner]:
    """Start Ray, or join the cluster, and leave it after the block."""
    progress.message("starting Ray")
    set_loss_message(GO_ON)
    cluster = connect_ray(engine)
    try:
        yield RayRunner(engine, cluster, progress)
    except EngineLost as error:
        raise EngineLost(f"{error.message}; {GO_ON}") from error
    finally:
        cluster.close()


def _do(work: Work, scenario_json: str, folder: str, gpus: float | None) -> CellOutcome:
    return work(scenario_json, folder, gpus)


def _nothing() -> None:
    pass
