"""The live table of a run on a terminal."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedkd.tracking.events import RoundReport, RunObserver, RunReport
from fedkd.tracking.pace import Pace
from fedkd.tracking.progress import opening_lines
from fedkd.tracking.wording import (
    MISSING,
    closing_lines,
    count,
    percent,
    phase_text,
    points,
    size,
    time_left,
)

if TYPE_CHECKING:
    from fedkd.scenario.schema import Scenario

VISIBLE_ROUNDS = 10
REFRESHES_PER_SECOND = 4
# Lines of the display that are not rounds: the table's head and margins, the mark of hidden rounds, the bar.
LINES_AROUND_ROUNDS = 8

COLUMNS = (
    "\nround",
    "local\nacc.",
    "global\nacc.",
    "fusion\ngain",
    "effective\nneighbours",
    "\nup",
    "\ndown",
    "\nseconds",
)


class LiveProgress(RunObserver):
    """A table of the last rounds above a bar with the phase and the time left.

    The last state of the table stays on the screen. Whatever else is printed meanwhile appears above it.

    Args:
        console: The terminal; None: standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live: Live | None = None
        self._pace = Pace()
        self._reports: deque[RoundReport] = deque(maxlen=VISIBLE_ROUNDS)
        self._rounds = self._finished = self._shown_from = 0
        self._phase = "starting"
        self._round = 0
        self._round_began = time.monotonic()

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        for line in opening_lines(scenario, folder, resumed_from):
            self.message(line)
        self._rounds = scenario.rounds
        self._finished = self._shown_from = resumed_from
        self._round = resumed_from + 1
        self._round_began = time.monotonic()
        self._live = Live(
            get_renderable=self._display, console=self._console, refresh_per_second=REFRESHES_PER_SECOND
        )
        self._live.start()

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        self._round, self._phase = round, phase_text(phase, done, total)

    def round_finished(self, report: RoundReport) -> None:
        self._pace.add(report.seconds)
        self._reports.append(report)
        self._rounds, self._finished = report.rounds, report.round
        self._round_began = time.monotonic()
        self._round, self._phase = min(report.round + 1, report.rounds), ""

    def run_finished(self, report: RunReport) -> None:
        self.closed()
        for line in closing_lines(report):
            self.message(line)

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def closed(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def _display(self) -> RenderableType:
        # Called from the refreshing thread as well: the reports are copied before they are counted.
        reports = list(self._reports)
        parts: list[RenderableType] = [self._table(reports)] if reports else []
        # What stays on the screen, after the last round or an interruption, has nothing under way.
        if self._live is not None and self._finished < self._rounds:
            parts.append(self._bar())
        return Group(*parts)

    def _table(self, reports: list[RoundReport]) -> Table:
        room = max(1, self._console.height - LINES_AROUND_ROUNDS)
        visible = reports[-room:]
        table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
        for title in COLUMNS:
            table.add_column(title, justify="right", no_wrap=True)
        if visible[0].round > self._shown_from + 1:
            table.add_row("⋮")
        for report in visible:
            table.add_row(*_cells(report))
        return table

    def _bar(self) -> RenderableType:
        line = Table.grid(padding=(0, 2))
        line.add_row(
            ProgressBar(total=max(1, self._rounds), completed=self._finished, width=24),
            Text(self._status(), no_wrap=True, overflow="ellipsis"),
        )
        return line

    def _status(self) -> str:
        elapsed = time.monotonic() - self._round_began
        left = self._pace.left(self._rounds - self._finished, elapsed)
        parts = [f"round {self._round}/{self._rounds}"]
        if self._phase:
            parts.append(self._phase)
        if left is not None:
            parts.append(f"{time_left(left)} left")
        return " · ".join(parts)


def _cells(report: RoundReport) -> list[RenderableType]:
    gain = points(report.fusion_gain)
    colour = {"+": "green", "-": "red"}.get(gain[0], "") if gain not in (MISSING, "+0.0 pt") else ""
    return [
        f"{report.round}/{report.rounds}",
        percent(report.accuracy_local),
        percent(report.accuracy_global),
        Text(gain, style=colour),
        count(report.effective_neighbours),
        size(report.bytes_up),
        size(report.bytes_down),
        f"{report.seconds:.1f}",
    ]
