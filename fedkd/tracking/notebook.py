"""The display of a run in a notebook: one cell's output, brought up to date as the run goes on."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.plan.evaluated import counted_clients
from fedkd.tracking.events import RoundReport, RunObserver, RunReport
from fedkd.tracking.html import bar, preformatted, table
from fedkd.tracking.pace import Pace
from fedkd.tracking.phase_watch import PhaseWatch
from fedkd.tracking.progress import opening_lines
from fedkd.tracking.wording import closing_lines, count, duration, gain, moments, size, time_left

if TYPE_CHECKING:
    from fedkd.scenario.schema import Scenario

VISIBLE_ROUNDS = 10
EVERY_SECONDS = 0.5
TITLES = ("round", "local accuracy", "global accuracy", "fusion gain", "neighbours", "up", "down", "time")

Show = Callable[[str], None]


class NotebookProgress(RunObserver):
    """The last rounds as a table under a bar with the phase and the time left.

    Args:
        show: Puts HTML in the place of what it showed last.
        clock: Returns seconds.
    """

    def __init__(self, show: Show, clock: Callable[[], float] = time.monotonic) -> None:
        self._show, self._clock = show, clock
        self._watch, self._pace = PhaseWatch(clock), Pace()
        self._messages: list[str] = []
        self._reports: deque[RoundReport] = deque(maxlen=VISIBLE_ROUNDS)
        self._rounds = self._clients = self._finished = 0
        self._began = self._shown = clock() - EVERY_SECONDS
        self._over = False

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        self._messages += opening_lines(scenario, folder, resumed_from)
        self._rounds, self._finished = scenario.last_round, resumed_from
        self._clients = len(counted_clients(scenario))
        self._watch.rest(resumed_from + 1)
        self._began = self._clock()
        self._refresh()

    def went_back(self, scenario: Scenario, folder: Path, done: int) -> None:
        kept = [report for report in self._reports if report.round <= done]
        self._reports = deque(kept, maxlen=VISIBLE_ROUNDS)
        self._finished = done
        self._watch.rest(done + 1)
        self._began = self._clock()
        self._refresh()

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        self._watch.follow(round, phase, done, total)
        if self._clock() - self._shown >= EVERY_SECONDS:
            self._refresh()

    def answered(self, round: int, phase: str, client: int, seconds: float) -> None:
        self._watch.answered(round, phase, client, seconds)

    def round_finished(self, report: RoundReport) -> None:
        self._pace.add(report.seconds)
        self._reports.append(report)
        self._rounds, self._finished = report.rounds, report.round
        self._watch.rest(min(report.round + 1, report.rounds))
        self._began = self._clock()
        self._refresh()

    def run_finished(self, report: RunReport) -> None:
        self._over = True
        self._messages += closing_lines(report)
        self._refresh()

    def message(self, text: str) -> None:
        self._messages.append(text)
        self._refresh()

    def failed(self, error: BaseException) -> None:
        self._over = True  # what is raised says why
        self._refresh()

    def _refresh(self) -> None:
        parts = []
        if self._rounds and not self._over:
            parts.append(bar(self._finished, self._rounds, self._status()))
        if self._reports:
            parts.append(table(TITLES, [_cells(report, self._clients) for report in self._reports], names=0))
        self._show("".join([*parts, preformatted(self._messages)]))
        self._shown = self._clock()

    def _status(self) -> str:
        left = self._pace.left(self._rounds - self._finished, self._clock() - self._began)
        parts = [f"round {self._watch.round}/{self._rounds}", *self._watch.parts(with_left=left is None)]
        if left is not None:
            parts.append(f"{time_left(left)} left")
        return " · ".join(parts)


def _cells(report: RoundReport, clients: int) -> list[str]:
    return [
        f"{report.round}/{report.rounds}",
        moments(report.accuracy_trained_local, report.accuracy_local),
        moments(report.accuracy_trained_global, report.accuracy_global),
        gain(report, clients),
        count(report.effective_neighbours),
        size(report.bytes_up),
        size(report.bytes_down),
        duration(report.seconds),
    ]


def notebook_show() -> Show | None:
    """Return what shows HTML in the notebook that this process works for; None: it works for none."""
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
