"""One cell, run on the inline engine on any free worker."""

import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedkd.benchmark.finished import seal, unseal
from fedkd.errors import FedkdError, Interrupted, RunFailed, described, one_line
from fedkd.plan import check_continuation, resolve_plan
from fedkd.scenario import result_relevant_keys, scenario_from_json, with_choices_of
from fedkd.simulation import ERROR_FILE, resume, run
from fedkd.storage import shared_between_runs, write_text_atomically
from fedkd.tracking import SCENARIO_FILE, RunObserver, read_run_plan

Status = Literal["done", "failed", "interrupted", "pending", "pruned", "stopped"]


@dataclass(frozen=True)
class CellOutcome:
    """The outcome of a cell."""

    status: Status  # an interrupted cell can be resumed; a hopeless trial is pruned, a hopeless cell stopped
    seconds: float = 0.0
    error: str = ""
    diverged: bool = False  # training led to infinity or NaN
    told: str = ""  # a remark for the display


def run_cell(
    scenario_json: str, folder: str, gpus: float | None = None, observers: Sequence[RunObserver] = ()
) -> CellOutcome:
    """Run a cell inline, or resume it; a failure is an outcome, with its traceback in the run folder.

    `gpus` replaces the GPUs of the scenario.
    """
    started = time.perf_counter()
    path = Path(folder)

    def outcome(status: Status, error: str = "", diverged: bool = False) -> CellOutcome:
        return CellOutcome(status, time.perf_counter() - started, one_line(error), diverged)

    try:
        (path / ERROR_FILE).unlink(missing_ok=True)
        unseal(path)
        scenario = scenario_from_json(scenario_json)
        if (path / SCENARIO_FILE).exists():
            began = read_run_plan(path).scenario
            check_continuation(with_choices_of(began, result_relevant_keys(scenario)), 0, began)
            resume(path, observers=observers, progress=False, report=False)
        else:
            engine: dict[str, Any] = {"kind": "inline", "actors": None, "address": None}
            engine |= {} if gpus is None else {"gpus_per_actor": gpus}
            changes = {"engine": scenario.engine.model_copy(update=engine)}
            plan = resolve_plan(scenario.model_copy(update=changes), written=False)
            with shared_between_runs():
                run(plan, out=path, observers=observers, progress=False, report=False)
        seal(path)
    except (Interrupted, KeyboardInterrupt):
        return outcome("interrupted")
    except FedkdError as error:
        _keep(path, str(error))
        diverged = isinstance(error, RunFailed) and error.diverged
        return outcome("failed", str(error), diverged)
    except Exception as error:
        _keep(path, traceback.format_exc())
        return outcome("failed", described(error))
    return outcome("done")


def _keep(folder: Path, text: str) -> None:
    with suppress(OSError):  # on a full disk, only the outcome reports it
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ERROR_FILE).exists():  # the runner has written the traceback of a client
            printable = text.encode(errors="backslashreplace").decode()
            write_text_atomically(folder / ERROR_FILE, f"{printable}\n")
