"""Displays of a run: a live table or plain lines."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fedkd.scenario import Scenario
from fedkd.tracking import wording
from fedkd.tracking.events import RoundReport, RunObserver, RunReport
from fedkd.tracking.phase_watch import Display

if TYPE_CHECKING:
    from rich.console import Console

QUIET_SECONDS = 30.0
"""Silence in a round before a line reports its phase; each further interval is twice as long."""


def make_progress(quiet: bool, console: Console | None = None) -> RunObserver:
    """Return the display that suits the console, or standard output by default."""
    if quiet:
        return RunObserver()
    if console is None:
        if (show := notebook_show()) is not None:
            from fedkd.tracking.live import NotebookProgress

            return NotebookProgress(show)
        if not sys.stdout.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
            return PlainProgress(sys.stdout)
    elif not console.is_terminal or console.is_dumb_terminal:
        return PlainProgress(console.file)
    from fedkd.tracking.live import LiveProgress

    return LiveProgress(console)


def notebook_show() -> Callable[[str], None] | None:
    """Return a function that shows HTML in this process's notebook, if any."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):  # IPython on a terminal has no kernel
        return None
    from IPython.display import HTML, display

    handle: Any = None

    def show(html: str) -> None:
        nonlocal handle
        if handle is None:
            handle = display(HTML(html), display_id=True)
        else:
            handle.update(HTML(html))

    return show


class PlainLines:
    """Prints lines to a stream until it is closed."""

    _stream: IO[str] | None

    def message(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            print(text, file=self._stream, flush=True)
        except OSError:  # ``| head`` or a closed terminal: the run continues without output
            self._stream = None


class PlainProgress(PlainLines, Display):
    """Prints a line per round, and the phase of long rounds."""

    def __init__(self, stream: IO[str] | None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._stream = stream
        self._told, self._patience = clock(), QUIET_SECONDS

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        super().run_started(scenario, folder, resumed_from)
        self._told, self._patience = self._clock(), QUIET_SECONDS

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        super().phase(round, phase, done, total)
        if self._clock() - self._told >= self._patience:
            self.tell_phase()
            self._told, self._patience = self._clock(), 2 * self._patience

    def tell_phase(self) -> None:
        """Print the progress of the present round."""
        width = len(str(self._rounds)) + 1
        parts = [f"      {self._round:>{width}}/{self._rounds}", *self._parts(with_left=True)]
        self.message("  ".join(parts))

    def round_finished(self, report: RoundReport) -> None:
        self._told, self._patience = self._clock(), QUIET_SECONDS
        super().round_finished(report)
        matrix, task, parts = self._matrix, report.task, []
        if matrix is not None and task is not None:
            parts = [f"task {task + 1:>{len(str(matrix.tasks))}}/{matrix.tasks}"]
        named = "" if report.metric == "accuracy" else f"{report.metric} "
        own, common = (wording.before_after(report, split) for split in ("local", "global"))
        parts = [
            f"round {report.round:>{len(str(report.rounds)) + 1}}/{report.rounds}",
            *parts,
            f"local {named}{own:>14}",
            f"global {named}{common:>14}",
            f"local gain {wording.gain(report, self._clients):>8}",
            f"neighbours {wording.count(report.effective_neighbours):>4}",
            f"up {wording.format_bytes(report.bytes_up):>8}",
            f"down {wording.format_bytes(report.bytes_down):>8}",
            f"{wording.format_duration(report.seconds):>6}",
        ]
        if report.round < report.rounds:
            parts.append(f"left {wording.format_time_left(self._pace.left(report.rounds - report.round))}")
        self.message("  ".join(parts))
        if self._schedule is not None and matrix is not None and task is not None:
            matrix.add(report)
            if self._schedule.ending(report.round):
                self.message(wording.learned_line(matrix, task))

    def run_finished(self, report: RunReport) -> None:
        for line in ["", *wording.closing_lines(report)]:
            self.message(line)
