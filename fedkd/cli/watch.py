"""``fedkd watch``: follow a run from another terminal or machine."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedkd.benchmark import forecast_words
from fedkd.errors import UserError
from fedkd.plan import Plan
from fedkd.simulation import read_run_summary
from fedkd.storage import expand_path
from fedkd.tracking import (
    METRICS_FILE,
    TIMINGS_FILE,
    PlainProgress,
    RoundReport,
    RunObserver,
    RunProgress,
    RunReport,
    is_locked,
    make_progress,
    read_progress,
    read_run_plan,
)

EVERY_SECONDS = 1.0
MEANS = {
    "accuracy_local": ("local", "accuracy"),
    "accuracy_global": ("global", "accuracy"),
    "accuracy_before_fusion_local": ("local", "accuracy_before_fusion"),
    "accuracy_before_fusion_global": ("global", "accuracy_before_fusion"),
    "fusion_gain": ("local", "fusion_gain"),
    "effective_neighbours": ("train", "effective_neighbours"),
    "train_loss": ("train", "loss"),
}
"""Split and metric whose federation mean fills each field of a `RoundReport`."""

Rows = list[Mapping[str, Any]]


def watch(
    folder: Path,
    *,
    once: bool = False,
    observer: RunObserver | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show a run's rounds until it ends; the run folder is only read."""
    folder = expand_path(folder).absolute()
    plan = read_run_plan(folder)
    if observer is None:
        observer = PlainProgress(sys.stdout) if once else make_progress(quiet=False)
    with observer:
        follower = _Follower(plan, folder, observer)
        while not follower.step() and not once:
            sleep(EVERY_SECONDS)
        if once:
            follower.tell_present()


class _Follower:
    """Read the files of a run and notify an observer as the run itself would."""

    def __init__(self, plan: Plan, folder: Path, observer: RunObserver) -> None:
        self._plan, self._folder, self._observer = plan, folder, observer
        self._metrics, self._timings = _Tail(folder / METRICS_FILE), _Tail(folder / TIMINGS_FILE)
        self._rows: dict[int, Rows] = {}
        self._costs: dict[int, Rows] = {}
        self._told = 0  # rounds
        self._present: RunProgress | None = None
        self._forecast = ""
        observer.run_started(plan.scenario, folder, 0)

    def step(self) -> bool:
        """Report the rounds since the last step; return whether the run has ended."""
        # Read the end first, then the rows: rows written in between are then still reported.
        present, running = read_progress(self._folder), is_locked(self._folder)
        found = read_run_summary(self._folder) if present is None or present.status == "done" else {}
        summary = found if found.get("rounds") == self._plan.scenario.rounds else None
        if self._read():
            self._told = 0
            self._observer.message("the run restarted from an earlier round")
        finished = max((round for round in self._costs if round > 0), default=0)
        if summary is None:  # more rows of the last round may follow
            finished = finished - 1 if present is None else min(finished, present.finished)
        for round in range(self._told + 1, finished + 1):
            self._observer.round_finished(self._report(round))
        self._told = max(self._told, finished)
        if (forecast := forecast_words(self._folder)) not in ("", self._forecast):
            self._forecast = forecast
            self._observer.message(forecast)
        self._present = present
        if summary is not None:
            self._observer.run_finished(RunReport(self._folder, summary))
            return True
        if running:
            self._tell_phase(present)
            return False
        if present is not None and present.status in ("failed", "interrupted"):
            self._observer.message(f"{present.status}: {present.error}")
        else:
            saved = f"continue with: fedkd resume {self._folder}"
            self._observer.message(f"the run stopped before its end; {saved}")
        return True

    def _read(self) -> bool:
        """Read new rows; return whether a resumed run has removed rows read before."""
        again = False
        for tail, found in ((self._metrics, self._rows), (self._timings, self._costs)):
            rows, cut = tail.read()
            if cut:
                found.clear()
            again = again or cut
            for row in rows:
                found.setdefault(row["round"], []).append(row)
        return again

    def _report(self, round: int) -> RoundReport:
        rows, costs, schedule = self._rows.get(round, []), self._costs.get(round, []), self._plan.schedule
        means = [row for row in rows if row["client"] is None and row["value"] is not None]
        whole = {(row["split"], row["metric"]): row["value"] for row in means if row["task"] is None}
        by_name = {f"{split}/{name}": value for (split, name), value in whole.items()}
        of_tasks = [row for row in means if row["task"] is not None]
        by_name |= {f"{row['metric']}/{row['split']}/{row['task']}": row["value"] for row in of_tasks}
        return RoundReport(
            round=round,
            rounds=self._plan.last_round,
            **{field: whole.get(key) for field, key in MEANS.items()},
            bytes_up=sum(row.get("bytes_up", 0) for row in costs),
            bytes_down=sum(row.get("bytes_down", 0) for row in costs),
            seconds=sum(row.get("seconds", 0.0) for row in costs),
            metrics=by_name,
            task=schedule.task(0, round) if schedule.in_step else None,
            metric=self._plan.scenario.main_metric,
        )

    def _tell_phase(self, present: RunProgress | None) -> None:
        if present is None or not present.phase:
            return
        self._observer.phase(present.round, present.phase, min(present.done, 1), present.total)
        if present.slowest is not None:
            slowest = present.slowest
            self._observer.answered(present.round, present.phase, slowest.client, slowest.seconds)
        self._observer.phase(present.round, present.phase, present.done, present.total)

    def tell_present(self) -> None:
        """Report the phase under way to a display of plain lines."""
        under_way = self._present is not None and self._present.status == "running" and self._present.phase
        if under_way and isinstance(self._observer, PlainProgress):
            self._observer.tell_phase()


class _Tail:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def read(self) -> tuple[Rows, bool]:
        """Return the new rows, or all rows again (true) if earlier rows were removed."""
        try:
            with self._path.open("rb") as file:
                cut = file.seek(0, 2) < self._read
                if cut:
                    self._read = 0
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            if self._read and not self._path.parent.is_dir():
                raise UserError("was removed", file=str(self._path.parent)) from None
            return [], False
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", file=str(self._path)) from None
        whole = data[: data.rfind(b"\n") + 1]  # a half-written line is read next time
        self._read += len(whole)
        return list(self._rows(whole)), cut

    def _rows(self, whole: bytes) -> Iterator[Mapping[str, Any]]:
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict) or not isinstance(row.get("round"), int):
                raise UserError("has a line that is not a row of metrics", file=str(self._path))
            yield row
