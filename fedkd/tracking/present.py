"""The run folder's `progress.json`: the state of a run for other processes.

    {"status": "running", "finished": 3, "rounds": 15, "round": 4, "phase": "train", "done": 7, "total": 10,
     "slowest": {"client": 4, "seconds": 2.1}, "error": null}

The file is replaced about once a second and at the end. A killed process leaves it as "running"; the lock
of the folder shows whether the run is alive.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedkd.errors import Interrupted, one_line, words_of
from fedkd.scenario import Scenario
from fedkd.storage import InvalidJson, parse_json
from fedkd.tracking.events import RoundReport, RunReport
from fedkd.tracking.phase_watch import FollowedRun, Slowest

PROGRESS = "progress.json"
EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class RunProgress:
    """Progress of a run; `done` of `total` clients have finished the present phase."""

    status: str  # running, done, failed or interrupted
    finished: int  # rounds
    rounds: int
    round: int  # present round
    phase: str  # empty before the first phase
    done: int
    total: int
    slowest: Slowest | None = None
    error: str | None = None  # one line, of a run that failed or was interrupted


class ProgressFile(FollowedRun):
    """Keeps `progress.json` up to date."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._path: Path | None = None
        self._written = -EVERY_SECONDS

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        super().run_started(scenario, folder, resumed_from)
        self._path = folder / PROGRESS
        self._write("running")

    def went_back(self, scenario: Scenario, folder: Path, done: int) -> None:
        super().went_back(scenario, folder, done)
        self._write("running")

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        super().phase(round, phase, done, total)
        if self._clock() - self._written >= EVERY_SECONDS:
            self._write("running")

    def round_finished(self, report: RoundReport) -> None:
        super().round_finished(report)
        self._write("running")

    def run_finished(self, report: RunReport) -> None:
        self._write("done")

    def failed(self, error: BaseException) -> None:
        kind = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
        self._write(kind, one_line(words_of(error) or type(error).__name__))

    def _write(self, status: str, error: str | None = None) -> None:
        if self._path is None:
            return
        under_way = (self._round, self._phase, self._done, self._total, self._slowest)
        now = RunProgress(status, self._finished, self._rounds, *under_way, error)
        # Atomic but not durable: the file is useless after a power cut, and a disk may be slow.
        temporary = self._path.with_name(f".{PROGRESS}.tmp")
        with suppress(OSError):  # a full disk is reported by the essential files
            temporary.write_text(json.dumps(asdict(now)) + "\n", encoding="utf-8")
            temporary.replace(self._path)
        self._written = self._clock()


def read_progress(folder: Path) -> RunProgress | None:
    """Return the progress of a run, if the file is readable."""
    with suppress(OSError, InvalidJson, TypeError, AttributeError, KeyError):
        found: Any = parse_json((folder / PROGRESS).read_bytes())
        slowest = found.pop("slowest")
        return RunProgress(**found, slowest=None if slowest is None else Slowest(**slowest))
    return None
