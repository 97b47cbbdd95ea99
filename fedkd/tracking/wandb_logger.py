"""Logging to Weights & Biases, which may fail in any way without the run taking notice."""

from __future__ import annotations

import io
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedkd.tracking.atomic import write_text_atomically
from fedkd.tracking.events import RoundReport, RunObserver, RunReport
from fedkd.tracking.recorder import read_metrics
from fedkd.tracking.task_matrix import TaskMatrix, matrices

if TYPE_CHECKING:
    from fedkd.scenario.schema import Scenario, Wandb

Mode = Literal["offline", "online"]

log = logging.getLogger("fedkd.tracking")

IDENTITY = "wandb-id"
MATRIX_PICTURE = "accuracy_matrix.png"
INIT_SECONDS = 30
FINISH_SECONDS = 60


class WandbLogger(RunObserver):
    """Logs every round's federation means to wandb, as the scenario's `tracking.wandb` says.

    Of a stream of tasks, `continual/average_accuracy_…` and `continual/bwt_…` are those of the tasks so far.

    The wandb run lies in the run folder (`DIR/wandb`) and has one identity for the life of that folder
    (`DIR/wandb-id`), so a resumed run goes on where it stopped. Nobody is ever asked for a key: an online run
    that cannot start (no key, no network) is kept offline, to be sent later with `wandb sync`. Any other
    failure is told once and switches the logger off.

    Args:
        warn: Tells the user a line; pass the display's `message`.
    """

    def __init__(self, warn: Callable[[str], None] = log.warning) -> None:
        self._warn = warn
        self._run: Any = None
        self._matrices: list[TaskMatrix] = []
        self._logged = 0  # the last round

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        wanted = scenario.tracking.wandb
        if wanted is None or wanted.mode == "disabled":
            return
        with self._switched_off_by_failure():
            self._run = self._start(scenario, wanted, folder)
            self._run.define_metric("round")
            self._run.define_metric("*", step_metric="round")
            self._matrices = matrices(scenario)
            if self._matrices and resumed_from:
                rows = read_metrics(folder)
                for matrix in self._matrices:
                    matrix.recall(rows)

    def round_finished(self, report: RoundReport) -> None:
        with self._switched_off_by_failure():
            if self._run is not None and report.round > self._logged:  # else it repeats one: it went back
                self._run.log(logged_values(report) | self._of_tasks(report))
                self._logged = report.round

    def _of_tasks(self, report: RoundReport) -> dict[str, float]:
        """Return the figures of all tasks so far under each protocol, if a round was evaluated on them."""
        if not self._matrices or report.task is None:
            return {}
        figures = {
            f"continual/{name}_{matrix.protocol}": value
            for matrix in self._matrices
            if matrix.add(report)
            for name, value in matrix.so_far().items()
        }
        return {"task": report.task, **figures}

    def run_finished(self, report: RunReport) -> None:
        with self._switched_off_by_failure():
            if self._run is not None:
                self._run.summary.update(dict(report.summary))
                if self._matrices and (picture := report.folder / MATRIX_PICTURE).exists():
                    last = {"round": report.summary["rounds"]}
                    self._run.log({"continual/accuracy_matrix": _image(picture), **last})
                self._finish(exit_code=0)

    def closed(self) -> None:
        # Still open means that the run did not finish; wandb shows it as failed until it is resumed.
        with self._switched_off_by_failure():
            self._finish(exit_code=1)

    def _start(self, scenario: Scenario, wanted: Wandb, folder: Path) -> Any:
        identity = _identity(folder)
        if wanted.mode == "online":
            if not _has_key():
                self._warn("wandb: no API key is configured; logging offline, `wandb sync` sends it later")
            else:
                try:
                    return _open(scenario, wanted, folder, identity, "online")
                except Exception as error:
                    self._warn(f"wandb: logging offline, `wandb sync` sends it later: {_one_line(error)}")
                    # wandb holds on to the identity of a run that failed to start.
                    identity = _new_identity(folder)
        return _open(scenario, wanted, folder, identity, "offline")

    def _finish(self, exit_code: int) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            run.finish(exit_code=exit_code)

    @contextmanager
    def _switched_off_by_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._run = None
            self._warn(f"wandb is switched off, the run goes on: {_one_line(error)}")


def _open(scenario: Scenario, wanted: Wandb, folder: Path, identity: str, mode: Mode) -> Any:
    import wandb

    return wandb.init(
        project=wanted.project,
        entity=wanted.entity,
        group=wanted.group,
        tags=wanted.tags,
        name=f"{scenario.name}-seed{scenario.seed}",
        id=identity,
        resume="allow",
        reinit="create_new",  # a run that the caller may have open is not ours to end
        dir=folder,
        config=scenario.model_dump(mode="json"),
        settings=wandb.Settings(
            mode=mode,
            silent=True,
            quiet=True,
            console="off",
            disable_git=True,
            save_code=False,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
        ),
    )


def logged_values(report: RoundReport) -> dict[str, float]:
    """Return what wandb logs of a round: `split/metric` names, values that were measured only."""
    values = {
        **report.metrics,
        "local/accuracy": report.accuracy_local,
        "global/accuracy": report.accuracy_global,
        "train/loss": report.train_loss,
        "fusion/gain": report.fusion_gain,
        "fusion/effective_neighbours": report.effective_neighbours,
        "bytes/up": report.bytes_up,
        "bytes/down": report.bytes_down,
        "seconds": report.seconds,
        "round": report.round,
    }
    return {name: value for name, value in values.items() if value is not None}


def _image(path: Path) -> Any:
    import wandb

    return wandb.Image(str(path))


def _has_key() -> bool:
    import wandb

    # wandb tells on standard error where it found a key.
    with redirect_stderr(io.StringIO()):
        return wandb.login(prompt=False, verify=False)


def _identity(folder: Path) -> str:
    path = folder / IDENTITY
    return path.read_text(encoding="utf-8").strip() if path.exists() else _new_identity(folder)


def _new_identity(folder: Path) -> str:
    # Not a draw of the experiment: two runs of one scenario must differ here.
    identity = secrets.token_hex(4)
    write_text_atomically(folder / IDENTITY, identity + "\n")
    return identity


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
