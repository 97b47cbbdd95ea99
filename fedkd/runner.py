"""Run a scenario, or go on with a run, from Python: the command line does nothing else."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from fedkd.errors import Interrupted, RunFailed
from fedkd.run_folder import create_run_folder, finish_run, locked, scenario_of_run
from fedkd.scenario.load import load_scenario
from fedkd.scenario.schema import Scenario
from fedkd.tracking.events import Observers, RunObserver
from fedkd.tracking.recorder import MetricRow, read_metrics

if TYPE_CHECKING:
    from fedkd.data.federated import FederatedData
    from fedkd.engine.grid import EngineGrid

ERROR_FILE = "error.txt"


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: The run folder.
        summary: What `summary.json` holds.
    """

    folder: Path
    summary: dict[str, Any]

    def metrics(self) -> list[MetricRow]:
        """Return the rows of `metrics.jsonl`."""
        return read_metrics(self.folder)


def run(
    scenario: Scenario | str | Path, *, out: str | Path | None = None, observers: Sequence[RunObserver] = ()
) -> RunResult:
    """Simulate a scenario.

    Args:
        scenario: A resolved scenario, or the path of a scenario file.
        out: Run folder; absent: a new one below ``runs/``.
        observers: Told what happens while it runs.

    Raises:
        UserError: The scenario cannot be run as it is.
        RunFailed: A client or the fusion failed; the folder's `error.txt` has the traceback.
        Interrupted: Stopped by a signal, with the state saved.
    """
    if not isinstance(scenario, Scenario):
        scenario = load_scenario(Path(scenario))
    with _Setup(scenario) as setup:  # the folder is made when nothing in the scenario is wrong any more
        return setup.work(create_run_folder(scenario, Path(out) if out else None), observers, resume=False)


def resume(folder: str | Path, *, observers: Sequence[RunObserver] = ()) -> RunResult:
    """Go on with a run where its last checkpoint left it.

    The result is what an unbroken run would have given, to the byte of `metrics.jsonl`.

    Args:
        folder: The run folder.
        observers: Told what happens while it runs.

    Raises:
        UserError: Not a run folder, or another process works in it.
        RunFailed: As `run`.
        Interrupted: As `run`.
    """
    folder = Path(folder).absolute()
    scenario = scenario_of_run(folder)
    with _Setup(scenario) as setup:
        return setup.work(folder, observers, resume=True)


class _Setup:
    """Everything between a scenario and its rounds: data, engine, signals."""

    def __init__(self, scenario: Scenario) -> None:
        os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
        self._scenario = scenario
        self._grid: EngineGrid | None = None
        self._cluster: Any = None

    def __enter__(self) -> _Setup:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._grid is not None:
            self._grid.close()
        if self._cluster is not None:
            self._cluster.close()

    def _start(self) -> None:
        scenario = self._scenario
        if scenario.engine.kind == "inline":
            from fedkd.engine.clients import inline_grid

            data = _load(scenario)
            self._grid = inline_grid(scenario, data)
        else:
            from fedkd.engine.ray_pool import connect

            # Ray takes seconds to start; the data and torch load meanwhile.
            with ThreadPoolExecutor(max_workers=1) as background:
                loading: Future[FederatedData] = background.submit(_load, scenario)
                self._cluster = connect(scenario.engine)
                data = loading.result()
            from fedkd.engine.clients import ray_grid

            self._grid = ray_grid(scenario, data, self._cluster)
        from fedkd.federation.participant import LocalClients, exchanges_weights

        self._weights = LocalClients(scenario, data).initial_weights() if exchanges_weights(scenario) else {}

    def work(self, folder: Path, observers: Sequence[RunObserver], *, resume: bool) -> RunResult:
        from fedkd.federation.rounds import Session
        from fedkd.federation.server_app import ServerContext, app

        assert self._grid is not None
        everyone = list(observers)
        if self._scenario.tracking.wandb is not None:
            from fedkd.tracking.wandb_logger import WandbLogger

            everyone.append(WandbLogger(warn=Observers(observers).message))
        with (
            locked(folder),
            _quiet_flower(),
            Observers(everyone) as observer,
            _stop_signals(observer) as stop,
        ):
            session = Session(folder, observer, stop.is_set, resume)
            context = ServerContext(self._scenario, self._weights, session)
            try:
                app(self._grid, context)
            except (Interrupted, KeyboardInterrupt) as error:
                told = str(error) or "stopped at once; the last checkpoint is saved"
                raise Interrupted(f"{told}; go on with: fedkd resume {folder}") from None
            except RunFailed as error:
                raise _explained(error, folder) from error
            assert context.totals is not None
            summary = finish_run(self._scenario, folder, context.totals, observer)
        return RunResult(folder, summary)


def _load(scenario: Scenario) -> FederatedData:
    from fedkd.data.federated import load_federated_data

    return load_federated_data(scenario)


def _explained(error: RunFailed, folder: Path) -> RunFailed:
    """Keep the traceback in the run folder and name the file in the message."""
    if not error.details:
        return error
    (folder / ERROR_FILE).write_text(error.details)
    return RunFailed(
        f"{error.message} (traceback in {folder / ERROR_FILE})", round=error.round, client=error.client
    )


@contextmanager
def _quiet_flower() -> Iterator[None]:
    """Keep the progress lines of Flower's strategies away from fedkd's own."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _stop_signals(observer: RunObserver) -> Iterator[threading.Event]:
    """Let the first Ctrl-C (or SIGTERM) ask for a stop after the round, and the second stop at once."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        observer.message("stopping after this round; press Ctrl-C again to stop at once")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
