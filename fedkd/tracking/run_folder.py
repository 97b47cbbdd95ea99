"""Create, lock, check and repair the run folder."""

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
"""Error numbers of a full or failing disk."""
TABLES = (FUSION_STEM, TRANSFERABILITY_FOLDER)  # folders with one table per round
MOST_COUNTS = 5_000_000  # most label counts (clients × classes × tasks) in `clients.json`


@contextmanager
def new_run_folder(scenario: Scenario, out: Path | None = None) -> Iterator[Path]:
    """Create and lock a run folder; yield its absolute path.

    The default is the first free ``runs/NAME-seedN``, ``runs/NAME-seedN-2``, … A folder that stays empty is
    removed. A folder with a run, or locked by another process, is a `UserError`.
    """
    try:
        folder = _free_folder(scenario) if out is None else expand_path(out, key="--out").absolute()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out or 'runs'}: {error.strerror}", key="--out") from error
    with lock_run_folder(folder):
        told = f"{folder} already holds a run; resume it (fedkd resume {folder}) or choose another folder"
        refuse_if((folder / SCENARIO_FILE).exists(), told, "--out")
        try:
            yield folder
        finally:
            if not (folder / SCENARIO_FILE).exists():
                for name in (
                    SCHEDULE_FILE,
                    TOPOLOGY,
                    LOCK,
                ):  # written before the disk was full
                    (folder / name).unlink(missing_ok=True)
                with suppress(OSError):  # the folder has other files
                    folder.rmdir()


def write_plan(folder: Path, plan: Plan) -> None:
    """Write a run's schedule and graph, then its scenario, which marks a run folder.

    The schedule stores the scenario's digest, to detect changes before the first checkpoint.
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
    """Return the content of `schedule.json`; None if it is missing or damaged."""
    with suppress(OSError, InvalidJson):
        table = parse_json((folder / SCHEDULE_FILE).read_bytes())
        if isinstance(table, dict) and table.pop("digest", None) in (None, _digest_of(table)):
            return table
    return None


def repair_run_files(folder: Path, plan: Plan, done: int, tell: Callable[[str], None]) -> None:
    """Repair the schedule and the tables of rounds of a resumed run.

    Checkpoints do not cover them. The `done` rounds are not repeated: their damaged tables are a `UserError`.
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
        tell(f"{path.parent.name}/{path.name} was damaged; it is computed again")
    schedule = _read_schedule(folder)
    expected = json.loads(plan.schedule.to_json())
    if schedule is None or {key: schedule.get(key) for key in expected} != expected:
        _write_schedule(folder, plan)
        tell(f"{SCHEDULE_FILE} was missing, damaged or from another run; it is written again")


def write_clients(folder: Path, plan: Plan, data: Data, *, counted: bool = True) -> None:
    """Write every client's model, owner, and number of training samples per class and task.

    Counts exclude samples that `blur` adds. They are omitted above `MOST_COUNTS`, and without `counted` (a
    deployed server).
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
    """Turn errors of a full disk into a `RunFailed`; `kept` words how to continue."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise RunFailed(f"cannot write to {folder}: {error.strerror}; {kept()}") from error


def write_deployment(folder: Path, federation: str) -> None:
    """Mark a run of deployed nodes, which a simulation must not resume."""
    write_json_atomically(folder / DEPLOYMENT, {"federation": federation})


def refuse_deployed(folder: Path) -> None:
    """Raise `UserError` for a run of deployed nodes."""
    if (folder / DEPLOYMENT).exists():
        told = "cannot be resumed: deployed nodes ran it and keep their clients' states; run it again"
        raise UserError(f"{told} (docs/deployment.md)", file=str(folder))


def _free_folder(scenario: Scenario) -> Path:
    """Create the first free folder below ``runs/``, safely among parallel processes."""
    first = Path("runs").absolute() / f"{scenario.name}-seed{scenario.seed}"
    folder, number = first, 1
    while True:
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
        number += 1
        folder = first.with_name(f"{first.name}-{number}")


def read_run_plan(folder: Path, rounds: int | None = None) -> Plan:
    """Return the plan of a run folder, with a new number of `rounds` if given."""
    try:
        if not (folder / SCENARIO_FILE).is_file():
            raise UserError(f"not a run folder: it has no {SCENARIO_FILE}", file=str(folder))
    except OSError as error:  # an invalid folder name
        raise UserError(f"not a run folder: {error.strerror}", file=str(folder)) from None
    return load_plan(folder / SCENARIO_FILE, [] if rounds is None else [f"rounds={rounds}"], written=False)


def check_links(folder: Path, plan: Plan) -> None:
    """Raise a `UserError` if the graph of a resumed run has changed."""
    try:
        text = (folder / TOPOLOGY).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):  # no graph, or an unreadable file
        return
    if plan.graph is not None and Graph.from_json(text, file=str(folder / TOPOLOGY)) != plan.graph:
        told = f"describes another graph than {TOPOLOGY} of the run; restore the file of topology.path"
        raise UserError(told, key="topology", file=str(folder / SCENARIO_FILE))


def check_unchanged_scenario(folder: Path, plan: Plan) -> None:
    """Raise a `UserError` if the scenario of a run without a checkpoint has changed."""
    file, known = folder / SCENARIO_FILE, (_read_schedule(folder) or {}).get("scenario")
    # Earlier versions wrote the other digest, which depends on the folder.
    if known not in (None, relocatable_digest(plan.scenario), scenario_digest(plan.scenario)):
        told = "was changed after the run began, and no round is saved; restore the file, or start a new run"
        raise UserError(f"{told}: fedkd run {file}", file=str(file))


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Lock a run folder and remove half-written files.

    A locked or read-only folder is a `UserError`.
    """
    try:
        # An existing lock may open in a folder that is otherwise read-only.
        probe = folder / f".probe.{os.getpid()}.tmp"
        probe.touch()
        probe.unlink(missing_ok=True)  # the process with the lock may have removed it
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError("another process uses this folder", file=str(folder)) from error
        remove_leftovers(folder)
        yield


def is_locked(folder: Path) -> bool:
    """Return whether a process uses a run folder; true without file locks."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
