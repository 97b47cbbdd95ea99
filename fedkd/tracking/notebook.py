"""The display of a run in a notebook: one cell's output, brought up to date as the run goes on."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from fedkd.tracking.events import RoundReport
from fedkd.tracking.live import RunTable
from fedkd.tracking.progress import Show

if TYPE_CHECKING:
    from fedkd.scenario.schema import Scenario

WIDTH, HEIGHT = 104, 40
EVERY_SECONDS = 0.5
FORMAT = '<pre style="white-space:pre;overflow-x:auto;line-height:normal">{code}</pre>'


class NotebookProgress(RunTable):
    """The table of a run as HTML, with all messages below it; `show` replaces what it showed last."""

    def __init__(self, show: Show, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(_console(), clock)
        self._show = show
        self._messages: list[str] = []
        self._shown = clock() - EVERY_SECONDS

    def went_back(self, scenario: Scenario, folder: Path, done: int) -> None:
        super().went_back(scenario, folder, done)
        self._refresh()

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        super().phase(round, phase, done, total)
        if self._clock() - self._shown >= EVERY_SECONDS:
            self._refresh()

    def round_finished(self, report: RoundReport) -> None:
        super().round_finished(report)
        self._refresh()

    def message(self, text: str) -> None:
        self._messages.append(text)
        self._refresh()

    def closed(self) -> None:
        if self._running:
            super().closed()
            self._refresh()

    def _refresh(self) -> None:
        console = _console()
        console.print(self._display(), Text("\n".join(self._messages)), soft_wrap=True)
        self._show(console.export_html(inline_styles=True, code_format=FORMAT))
        self._shown = self._clock()


def _console() -> Console:
    return Console(
        file=io.StringIO(), record=True, width=WIDTH, height=HEIGHT, color_system="truecolor",
        force_terminal=True, force_jupyter=False,
    )  # fmt: skip
