"""The run folder: made once, locked while a run works in it, and read back to go on."""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedkd.data import Data, FederatedData
from fedkd.errors import RunFailed, UserError, refuse_if
from fedkd.models import architecture_names
from fedkd.plan import Graph, Plan, load_plan
from fedkd.scenario import Scenario, dump_toml, relocatable_digest, run_digest, scenario_digest
from fedkd.storage import (
    InvalidJson,
    expand_path,
    parse_json,
    read_table,
    write_json_atomically,
    write_text_atomically,
)
from fedkd.tracking.folder import CLIENTS_FILE, DEPLOYMENT, SCENARIO_FILE, SCHEDULE_FILE, TOPOLOGY
from fedkd.tracking.leftovers import remove_leftovers
from fedkd.tracking.neighbours import FUSION_STEM, TRANSFERABILITY_FOLDER

LOCK = ".lock"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Error numbers of a disk that takes no more."""
TABLES = (FUSION_STEM, TRANSFERABILITY_FOLDER)  # folders of tables, one a round
MOST_COUNTS = 5_000_000  # label counts (clients x classes x tasks) up to which a run folder holds them


@contextmanager
def new_run_folder(scenario: Scenario, out: Path | None = None) -> Iterator[Path]:
    """Make a run folder and hold it for this process; yield its absolute path.

    Without `out` it is the first free ``runs/NAME-seedN``, ``runs/NAME-seedN-2``, … An empty one is removed.
    A folder that holds a run, or that another process works in, is a `UserError`.
    """
    try:
        folder = _free_folder(scenario) if out is None else expand_path(out, key="--out").absolute()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out or 'runs'}: {error.strerror}", key="--out") from error
    with lock_run_folder(folder):
        told = f"{folder} holds a run already; resume it (fedkd resume {folder}) or choose another folder"
        refuse_if((folder / SCENARIO_FILE).exists(), told, "--out")
        try:
            yield folder
        finally:
            if not (folder / SCENARIO_FILE).exists():
                for name in (
                    SCHEDULE_FILE,
                    TOPOLOGY,
                    LOCK,
                ):  # written before it, on a disk that was full then
                    (folder / name).unlink(missing_ok=True)
                with suppress(OSError):  # other files are in it
                    folder.rmdir()


def write_plan(folder: Path, plan: Plan) -> None:
    """Write a run's schedule, its graph if there is one, and last its scenario, which makes a run folder.

    The scenario's digest in the schedule reveals a change of it before the first checkpoint.
    """
    try:
        _write_schedule(folder, plan)
        if plan.graph is not None:
            write_text_atomically(folder / TOPOLOGY, plan.graph.to_json())
        write_text_atomically(folder / SCENARIO_FILE, dump_toml(plan.scenario, folder))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}", key="--out") from error


def _write_schedule(folder: Path, plan: Plan) -> None:
    table = {"scenario": relocatable_digest(plan.scenario), **json.loads(plan.schedule.to_json())}
    write_text_atomically(folder / SCHEDULE_FILE, json.dumps({**table, "digest": _digest_of(table)}) + "\n")


def _digest_of(table: object) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _read_schedule(folder: Path) -> dict[str, Any] | None:
    """Return what `schedule.json` holds, with or without a digest; None: it is missing or damaged."""
    with suppress(OSError, InvalidJson):
        table = parse_json((folder / SCHEDULE_FILE).read_bytes())
        if isinstance(table, dict) and table.pop("digest", None) in (None, _digest_of(table)):
            return table
    return None


def repair_run_files(folder: Path, plan: Plan, done: int, tell: Callable[[str], None]) -> None:
    """Repair the files of a resumed run that its checkpoints do not cover: `schedule.json`, tables of rounds.

    Of a table in the `done` rounds, which do not run again, damage is a `UserError`.
    """
    run = run_digest(plan.scenario)
    for path in sorted(path for kind in TABLES for path in (folder / kind).glob("*.npz")):
        number = path.stem.rpartition("-")[2]
        if not number.isdigit() or read_table(path, run) is not None:
            continue
        if int(number) <= done:
            told = "is damaged or belongs to another run; restore it, or remove it to continue without it"
            raise UserError(told, file=str(path))
        path.unlink()
        tell(f"{path.parent.name}/{path.name} was damaged and is computed again")
    schedule = _read_schedule(folder)
    expected = json.loads(plan.schedule.to_json())
    if schedule is None or {key: schedule.get(key) for key in expected} != expected:
        _write_schedule(folder, plan)
        tell(f"{SCHEDULE_FILE} was missing, damaged or of another run, and is written again")


def write_clients(folder: Path, plan: Plan, data: Data, *, counted: bool = True) -> None:
    """Write every client's model, its owner's name, and its training samples of each class and task.

    Counts leave out what `blur` adds, more than `MOST_COUNTS`, and those of a deployed server (not
    `counted`).
    """
    parts = [("", data)] if isinstance(data, FederatedData) else [(task.name, task.data) for task in data]
    told = counted and plan.scenario.data.clients * sum(part.classes for _, part in parts) <= MOST_COUNTS
    tasks = [
        {"name": name, "classes": part.class_names, "train": part.label_counts().tolist()}
        for name, part in parts
    ]
    owners = {"owners": parts[0][1].owners} if parts[0][1].owners else {}
    table = {"models": architecture_names(plan.groups), **owners, "tasks": tasks if told else []}
    write_text_atomically(folder / CLIENTS_FILE, json.dumps(table) + "\n")


@contextmanager
def explain_disk_errors(folder: Path, kept: Callable[[], str]) -> Iterator[None]:
    """Turn errors of a full disk into a `RunFailed`, with the words of `kept` on how to go on."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise RunFailed(f"cannot write to {folder}: {error.strerror}; {kept()}") from error


def write_deployment(folder: Path, federation: str) -> None:
    """Mark a run as one of deployed nodes, which no simulation may resume."""
    write_json_atomically(folder / DEPLOYMENT, {"federation": federation})


def refuse_deployed(folder: Path) -> None:
    """Raise `UserError` for a run of deployed nodes, which no simulation may resume."""
    if (folder / DEPLOYMENT).exists():
        told = "deployed nodes ran it and keep their clients' states: run it again; it cannot be resumed"
        raise UserError(f"{told} (docs/deployment.md)", file=str(folder))


def _free_folder(scenario: Scenario) -> Path:
    """Make the first folder below ``runs/`` that is not there yet; other processes may do so meanwhile."""
    first = Path("runs").absolute() / f"{scenario.name}-seed{scenario.seed}"
    folder, number = first, 1
    while True:
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
        number += 1
        folder = first.with_name(f"{first.name}-{number}")


def read_run_plan(folder: Path, rounds: int | None = None) -> Plan:
    """Return the plan of an existing run folder, with `rounds` in place of its own number."""
    try:
        if not (folder / SCENARIO_FILE).is_file():
            raise UserError(f"not a run folder: it has no {SCENARIO_FILE}", file=str(folder))
    except OSError as error:  # a name that no folder can have
        raise UserError(f"not a run folder: {error.strerror}", file=str(folder)) from None
    return load_plan(folder / SCENARIO_FILE, [] if rounds is None else [f"rounds={rounds}"], written=False)


def check_links(folder: Path, plan: Plan) -> None:
    """Refuse to resume a run whose graph differs from the one that it began with."""
    try:
        text = (folder / TOPOLOGY).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # there is none, or it is lost
        return
    if plan.graph is not None and Graph.from_json(text, file=str(folder / TOPOLOGY)) != plan.graph:
        told = f"describes another graph than {TOPOLOGY}, with which the run began"
        told += "; restore the file that topology.path names"
        raise UserError(told, key="topology", file=str(folder / SCENARIO_FILE))


def check_unchanged_scenario(folder: Path, plan: Plan) -> None:
    """Refuse a run without a checkpoint whose scenario changed since it began."""
    file, known = folder / SCENARIO_FILE, (_read_schedule(folder) or {}).get("scenario")
    # Earlier versions wrote the other digest, which changes with the place.
    if known not in (None, relocatable_digest(plan.scenario), scenario_digest(plan.scenario)):
        told = "was changed after the run began, and no round is saved; restore it, or start a new run"
        raise UserError(f"{told}: fedkd run {file}", file=str(file))


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Hold a run folder, swept of half-written files; one that is held or read-only is a `UserError`."""
    try:
        # A lock that is there already may be opened where nothing else can be written.
        probe = folder / f".probe.{os.getpid()}.tmp"
        probe.touch()
        probe.unlink(missing_ok=True)  # the process that holds the folder may have removed it
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError("another process is running in this folder", file=str(folder)) from error
        remove_leftovers(folder)
        yield


def is_locked(folder: Path) -> bool:
    """Return whether a process works in a run folder; yes, where a file system has no locks."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
