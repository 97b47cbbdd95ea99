"""Progress of a bench or search: a live display on a terminal, else plain lines; nothing if quiet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any

from fedkd.benchmark.cells import Cell
from fedkd.benchmark.estimate import CellPace
from fedkd.benchmark.worker import CellOutcome
from fedkd.tracking import PlainLines, format_duration, format_time_left

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

VISIBLE_RUNNING = 8


class BenchProgress:
    """Counts cells and estimates the time left; `unknown` cells come later (see `add`)."""

    def __init__(
        self, cells: Sequence[Cell], already_done: int, compared: Sequence[str] = (), unknown: int = 0
    ) -> None:
        self.total = len(cells) + already_done + unknown
        self.already_done = already_done
        self.done = self.failed = 0
        self.running: dict[Cell, float] = {}
        self._unknown = unknown
        self._slots = 1
        self._pace = CellPace(compared=compared)
        self._waiting = dict.fromkeys(cells)
        self._usual = 0.0
        self.remark: Callable[[Cell], str] = lambda cell: ""
        """Returns a remark about a running cell, such as its forecast."""

    def add(self, cells: Sequence[Cell], known: int) -> None:
        """Add cells to run; `known` is the number of unknown cells that they and finished ones replace."""
        self._waiting |= dict.fromkeys(cells)
        self.already_done += known - len(cells)
        self._unknown -= known

    def slots(self, count: int) -> None:
        self._slots = count

    def started(self, cell: Cell) -> None:
        self.running[cell] = time.monotonic()

    def finished(self, cell: Cell, outcome: CellOutcome) -> None:
        self.running.pop(cell, None)
        self._waiting.pop(cell, None)
        if outcome.status == "done":
            self._pace.add(cell, outcome.seconds)
            self._usual = self._pace.of(cell) or 0.0
        self.done += outcome.status in ("done", "pruned", "stopped")
        self.failed += outcome.status == "failed"

    def message(self, text: str) -> None:
        """Show a line."""

    def closed(self) -> None:
        """Release the terminal."""

    def left(self) -> float | None:
        """Return the seconds left, estimated from the cells that finished since the bench was started."""
        everything = self._pace.of_all(list(self._waiting))
        if everything is None:
            return None
        known = len(self._waiting)
        everything += self._unknown * (everything / known if known else self._usual)
        now = time.monotonic()
        spent = sum(min(self._pace.of(cell) or 0.0, now - since) for cell, since in self.running.items())
        return (everything - spent) / max(1, min(self._slots, len(self._waiting) + self._unknown))

    def counts(self, *, left: bool = False) -> str:
        """Word the progress: ``12/27 done, 1 failed, 2 running``."""
        words = [f"{self.already_done + self.done}/{self.total} done"]
        if self.failed:
            words.append(f"{self.failed} failed")
        if self.running:
            words.append(f"{len(self.running)} running")
        if left and (self._waiting or self._unknown > 0):
            words.append(f"{format_time_left(self.left())} left")
        return ", ".join(words)


class PlainProgress(PlainLines, BenchProgress):
    """One line per finished cell."""

    def __init__(self, stream: IO[str], *counted: Any, **more: Any) -> None:
        super().__init__(*counted, **more)
        self._stream = stream

    def finished(self, cell: Cell, outcome: CellOutcome) -> None:
        super().finished(cell, outcome)
        self.message(f"{finished_line(cell, outcome)}  ({self.counts(left=True)})")


class LiveProgress(BenchProgress):
    """A bar with the cells that are running; failures stay on the screen above it."""

    def __init__(self, console: Console, *counted: Any, **more: Any) -> None:
        super().__init__(*counted, **more)
        from rich.live import Live

        self._console = console
        self._live = Live(get_renderable=self._display, console=console, refresh_per_second=4)
        self._live.start()

    def finished(self, cell: Cell, outcome: CellOutcome) -> None:
        super().finished(cell, outcome)
        if outcome.status == "failed" or outcome.told:
            self.message(finished_line(cell, outcome))

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def closed(self) -> None:
        self._live.stop()

    def _display(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        def line(text: str) -> Text:
            return Text(text, no_wrap=True, overflow="ellipsis")

        bar = Table.grid(padding=(0, 2))
        completed = self.already_done + self.done + self.failed
        bar.add_row(
            ProgressBar(total=max(1, self.total), completed=completed, width=24),
            line(self.counts(left=self.left() is not None)),
        )
        # The refreshing thread calls this too: what runs is copied before it is counted.
        running, now = list(self.running.items()), time.monotonic()
        lines = [
            line(f"  {cell.label}  {format_duration(now - since)}  {self.remark(cell)}".rstrip())
            for cell, since in running[:VISIBLE_RUNNING]
        ]
        if len(running) > VISIBLE_RUNNING:
            lines.append(Text(f"  and {len(running) - VISIBLE_RUNNING} more"))
        return Group(bar, *lines)


def finished_line(cell: Cell, outcome: CellOutcome) -> str:
    """Return the line about a finished cell."""
    ending = f": {outcome.error}" if outcome.error else f"  {format_duration(outcome.seconds)}"
    return f"{outcome.status:<6}  {cell.label}{ending}" + (f"  {outcome.told}" if outcome.told else "")


def make_bench_progress(
    cells: Sequence[Cell], already_done: int, compared: Sequence[str] = (), *, quiet: bool, unknown: int = 0
) -> BenchProgress:
    """Return the display that suits the output."""
    counted = (cells, already_done, compared, unknown)
    if quiet:
        return BenchProgress(*counted)
    if not sys.stdout.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return PlainProgress(sys.stdout, *counted)
    from rich.console import Console

    return LiveProgress(Console(), *counted)
