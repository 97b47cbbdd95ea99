"""Run a scenario or resume a run, from Python or the command line."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.engine import StartedEngine, set_loss_message, started_engine, watch_stop_signals
from fedkd.errors import ActorsLost, EngineLost, Interrupted, RunFailed, UserError, blaming
from fedkd.plan import Plan, check_continuation, load_plan, parse_plan, plan_with_changes
from fedkd.plan import resolve_plan as resolve_scenario
from fedkd.report import finish_run
from fedkd.scenario import Scenario, Tracking
from fedkd.simulation.results import RunResult
from fedkd.storage import expand_path
from fedkd.tracking import (
    DISK_ERRORS,
    SCENARIO_FILE,
    Observers,
    ProgressFile,
    RunLog,
    RunObserver,
    check_links,
    check_unchanged_scenario,
    explain_disk_errors,
    lock_run_folder,
    make_progress,
    new_run_folder,
    read_run_plan,
    refuse_deployed,
    repair_run_files,
    write_clients,
    write_plan,
)

if TYPE_CHECKING:
    from fedkd.tracking import Totals

ERROR_FILE = "error.txt"
STOPPING = "stopping after this round; press Ctrl-C again to stop at once"


def run(
    scenario: Scenario | Plan | Mapping[str, Any] | str | Path,
    *,
    out: str | Path | None = None,
    observers: Sequence[RunObserver] = (),
    progress: bool = True,
    report: bool = True,
    **changes: Any,
) -> RunResult:
    """Simulate a scenario.

    Args:
        scenario: A scenario, its plan, the path of a scenario file, the name of a shipped one, or the tables
            of such a file. Paths and plug-ins in tables are relative to the working folder.
        out: Run folder (default: a new one below ``runs/``).
        observers: Observers of the run's events.
        progress: Show a live table on a terminal or in a notebook, plain lines elsewhere.
        report: Write `report.html` (two megabytes) at the end.
        changes: Changed values of the scenario: ``rounds=5``; keys of a table: ``fusion={"beta": 2.0}``, or
            ``**{"fusion.beta": 2.0}``.

    Raises:
        UserError: The scenario is invalid.
        RunFailed: A client or the fusion failed; `error.txt` in the run folder has the traceback.
        Interrupted: A signal stopped the run; its state is saved.
    """
    plan = _plan_of(scenario, changes)
    with (
        new_run_folder(plan.scenario, Path(out) if out else None) as folder,
        _end_told(folder),
        _watched(plan.scenario, observers, progress) as observer,
        started_engine(plan, folder, observer.message) as engine,
    ):
        write_plan(folder, engine.plan)
        return _work(engine.plan, folder, engine, observer, resume=False, report=report)


def _plan_of(
    scenario: Scenario | Plan | Mapping[str, Any] | str | Path, changes: Mapping[str, Any] | None = None
) -> Plan:
    if not isinstance(scenario, Plan | Scenario | str | os.PathLike | Mapping):
        told = "must be a scenario, its plan, the path of a scenario file, or its tables as a mapping"
        raise UserError(f"{told}, got {type(scenario).__name__}")
    if changes:
        tables = scenario.scenario if isinstance(scenario, Plan) else scenario
        return plan_with_changes(Path(tables) if isinstance(tables, os.PathLike) else tables, changes)
    if isinstance(scenario, Plan):
        return scenario
    if isinstance(scenario, Scenario):
        return resolve_scenario(scenario)
    return parse_plan(scenario) if isinstance(scenario, Mapping) else load_plan(scenario)


def resume(
    folder: str | Path,
    *,
    rounds: int | None = None,
    observers: Sequence[RunObserver] = (),
    progress: bool = True,
    report: bool = True,
) -> RunResult:
    """Resume a run from its last checkpoint.

    Its `metrics.jsonl` has the same bytes as that of an unbroken run.

    Args:
        rounds: New total number of rounds, which extends the run.

    Raises:
        UserError: It is not a run folder, another process uses it, or its scenario was changed.
        RunFailed: As `run`.
        Interrupted: As `run`.
    """
    if not isinstance(folder, str | os.PathLike):
        raise UserError(f"the run folder must be a path, got {folder!r}")
    folder = expand_path(folder).absolute()
    plan = read_run_plan(folder, rounds)
    refuse_deployed(folder)
    with lock_run_folder(folder), _end_told(folder), _watched(plan.scenario, observers, progress) as observer:
        done = _check_continuation(plan, folder)
        check_links(folder, plan)
        repair_run_files(folder, read_run_plan(folder), done, observer.message)
        with started_engine(plan, folder, observer.message) as engine:
            if rounds is not None:
                write_plan(folder, engine.plan)
            return _work(engine.plan, folder, engine, observer, resume=True, report=report)


def _check_continuation(plan: Plan, folder: Path) -> int:
    from fedkd.federation import CheckpointStore

    began = CheckpointStore(folder).began()
    if began is None:
        check_unchanged_scenario(folder, read_run_plan(folder))  # with the rounds in the file
        return 0
    with blaming(file=str(folder / SCENARIO_FILE)):
        check_continuation(*began, plan.scenario)
    return began[1]


def _watched(scenario: Scenario, observers: Sequence[RunObserver], progress: bool) -> Observers:
    observers = [*([make_progress(quiet=False)] if progress else []), *observers]
    everyone = [*observers, ProgressFile(), RunLog()]
    if scenario.tracking != Tracking():
        from fedkd.tracking import check_loggers, make_loggers

        check_loggers(scenario)
        everyone += make_loggers(scenario, Observers([*observers, everyone[-1]]).message)
    return Observers(everyone)


def _work(
    plan: Plan, folder: Path, engine: StartedEngine, observer: RunObserver, *, resume: bool, report: bool
) -> RunResult:
    from fedkd.data import task_names
    from fedkd.federation import flower_logs_from

    with flower_logs_from(logging.WARNING), watch_stop_signals(partial(observer.message, STOPPING)) as stop:
        with suppress(OSError):
            (folder / ERROR_FILE).unlink(missing_ok=True)  # left by the run that failed and is resumed
        go_on = _way_on(folder)
        set_loss_message(go_on)
        with _writing_to(folder):
            write_clients(folder, plan, engine.data)
        try:
            totals = _rounds(plan, folder, engine, observer, stop.is_set, resume)
        except (Interrupted, KeyboardInterrupt) as error:
            saved = f"{error}; continue with: fedkd resume {folder}"
            raise Interrupted(saved if str(error) else f"stopped at once; {go_on}") from None
        except EngineLost as error:
            if stop.is_set():  # a signal to the whole process group stops Ray's processes too
                raise Interrupted(f"stopped at once; {go_on}") from None
            told = f"{error.message}; {go_on}"
            raise EngineLost(told, round=error.round, client=error.client) from error
        except RunFailed as error:
            raise _explained(error, folder) from error
        tasks = task_names(engine.data)
        with _writing_to(folder):
            summary = finish_run(plan, folder, totals, observer, tasks, page=report)
        return RunResult(folder, summary)


def _rounds(
    plan: Plan,
    folder: Path,
    engine: StartedEngine,
    observer: RunObserver,
    stopping: Callable[[], bool],
    resume: bool,
) -> Totals:
    """Run all rounds and return their costs; lost actors restart from the last checkpoint."""
    from fedkd.engine import RestartPolicy, describe_restart_point
    from fedkd.federation import CheckpointStore, RunControl, ServerContext, server_app

    tolerant = plan.scenario.faults.on_client_error != "fail"
    policy = RestartPolicy(plan.scenario.engine.restarts, tolerant=tolerant)
    control = RunControl(folder, observer, stopping, resume)
    while True:
        context = ServerContext(plan, engine.data, control)
        try:
            server_app(engine.grid, context)
            assert context.totals is not None
            return context.totals
        except ActorsLost as loss:
            lost = loss
        control = replace(control, resume=True, again=True)
        renewed = False
        while not renewed:
            if stopping():
                raise lost
            began = CheckpointStore(folder).began()
            saved = 0 if began is None else began[1]
            if (end := policy.record(lost, saved)) is not None:
                raise end from lost
            observer.message(f"{lost}; restarting from {describe_restart_point(saved)} ({policy.count})")
            try:
                engine.renew()
                renewed = True
            except ActorsLost as loss:
                lost = loss


def _way_on(folder: Path) -> str:
    if not (folder / SCENARIO_FILE).exists():
        return "nothing was written; start the run again"
    return f"the last checkpoint is saved; continue with: fedkd resume {folder}"


@contextmanager
def _end_told(folder: Path) -> Iterator[None]:
    """Name the saved state if the disk is full, or a signal comes outside the rounds."""
    try:
        with explain_disk_errors(folder, partial(_kept, folder)):
            yield
    except KeyboardInterrupt:
        raise Interrupted(f"stopped at once; {_way_on(folder)}") from None


def _kept(folder: Path, *, full: bool = True) -> str:
    from fedkd.federation import CheckpointStore

    saved = CheckpointStore(folder).rounds()
    kept = f"round {saved[-1]} is saved" if saved else "no round is saved yet"
    return f"{kept}; {'free disk space, then ' * full}continue with: fedkd resume {folder}"


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kept = _kept(folder, full=error.errno in DISK_ERRORS)
        raise RunFailed(f"cannot write to {folder}: {error.strerror or error}; {kept}") from error


def _explained(error: RunFailed, folder: Path) -> RunFailed:
    """Keep the traceback in the run folder and name the file in the message."""
    if not error.details:
        return error
    file = folder / ERROR_FILE
    try:
        file.write_text(error.details, encoding="utf-8", errors="backslashreplace")
    except OSError:  # report the failure without the file
        return error
    told, diverged = f"{error.message} (traceback in {file})", error.diverged
    return RunFailed(told, round=error.round, client=error.client, diverged=diverged)
