"""What a bench shows while it works: a live display on a terminal, else plain lines, nothing if quiet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from fedkd.benchmark.cells import Cell
from fedkd.benchmark.estimate import CellPace
from fedkd.benchmark.scheduler import Watcher
from fedkd.benchmark.worker import Outcome
from fedkd.tracking.wording import duration, time_left

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

VISIBLE_RUNNING = 8


class BenchProgress(Watcher):
    """Counts cells and estimates the time left; subclasses show it.

    Args:
        cells: The cells that are to run, in order.
        already_done: Cells that need not run.
        compared: Axes along which the time of a cell is most likely to differ.
        unknown: Further ones of which it is not known yet what they are (see `add`).
    """

    def __init__(
        self, cells: Sequence[Cell], already_done: int, compared: Sequence[str], unknown: int = 0
    ) -> None:
        self.cells = list(cells)
        self.total = len(cells) + already_done + unknown
        self._unknown = unknown
        self.already_done = already_done
        self.done = self.failed = 0
        self.running: dict[int, float] = {}
        self._slots = 1
        self._pace = CellPace(compared=compared)
        self._waiting = dict(enumerate(cells))

    def add(self, cells: Sequence[Cell], known: int) -> None:
        """Take up cells that were not known so far; their jobs are numbered on from the last.

        Args:
            cells: Those that are to run, in order.
            known: How many there are with those that need not run.
        """
        self._waiting |= dict(enumerate(cells, start=len(self.cells)))
        self.cells += cells
        self.already_done += known - len(cells)
        self._unknown -= known

    def slots(self, count: int) -> None:
        self._slots = count

    def started(self, job: int) -> None:
        self.running[job] = time.monotonic()

    def finished(self, job: int, outcome: Outcome) -> None:
        self.running.pop(job, None)
        self._waiting.pop(job, None)
        if outcome.status == "done":
            self._pace.add(self.cells[job], outcome.seconds)
            self.done += 1
        elif outcome.status == "pruned":
            self.done += 1
        elif outcome.status == "failed":
            self.failed += 1

    def left(self) -> float | None:
        """Return the seconds left, estimated from the cells that finished since the bench was started."""
        known = list(self._waiting.values())
        everything = self._pace.of_all(known)
        if everything is None:
            return None
        if self._unknown and self.cells:
            usual = everything / len(known) if known else self._pace.of(self.cells[-1])
            everything += self._unknown * (usual or 0.0)
        now = time.monotonic()
        running = [
            (self._pace.of(self.cells[job]) or 0.0, now - since) for job, since in self.running.items()
        ]
        spent = sum(min(usual, elapsed) for usual, elapsed in running)
        return (everything - spent) / max(1, min(self._slots, len(self._waiting) + self._unknown))

    @property
    def leaves(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._waiting) or self._unknown > 0

    def counts(self) -> str:
        """Word how far it is: ``12/27 done, 1 failed, 2 running``."""
        words = [f"{self.already_done + self.done}/{self.total} done"]
        if self.failed:
            words.append(f"{self.failed} failed")
        if self.running:
            words.append(f"{len(self.running)} running")
        return ", ".join(words)

    def closed(self) -> None:
        """Give back the terminal."""


class PlainProgress(BenchProgress):
    """One line per finished cell; silent once there is nobody to read them."""

    def __init__(
        self,
        cells: Sequence[Cell],
        already_done: int,
        compared: Sequence[str],
        stream: IO[str],
        unknown: int = 0,
    ) -> None:
        super().__init__(cells, already_done, compared, unknown)
        self._stream: IO[str] | None = stream

    def finished(self, job: int, outcome: Outcome) -> None:
        super().finished(job, outcome)
        for line in finished_lines(self.cells[job], outcome):
            left = f", {time_left(self.left())} left" if self.leaves else ""
            self.message(f"{line}  ({self.counts()}{left})")

    def message(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            print(text, file=self._stream, flush=True)
        except OSError:  # ``| head``, or a terminal that was closed: the bench goes on unseen
            self._stream = None


class LiveProgress(BenchProgress):
    """A bar with the cells that are running; failures stay on the screen above it."""

    def __init__(
        self,
        cells: Sequence[Cell],
        already_done: int,
        compared: Sequence[str],
        console: Console,
        unknown: int = 0,
    ) -> None:
        super().__init__(cells, already_done, compared, unknown)
        from rich.live import Live

        self._console = console
        self._live = Live(get_renderable=self._display, console=console, refresh_per_second=4)
        self._live.start()

    def finished(self, job: int, outcome: Outcome) -> None:
        super().finished(job, outcome)
        if outcome.status == "failed" or outcome.told:
            for line in finished_lines(self.cells[job], outcome):
                self.message(line)

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def closed(self) -> None:
        self._live.stop()

    def _display(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar = Table.grid(padding=(0, 2))
        left = self.left() if self.leaves else None
        status = self.counts() + (f", {time_left(left)} left" if left is not None else "")
        completed = self.already_done + self.done + self.failed
        bar.add_row(
            ProgressBar(total=max(1, self.total), completed=completed, width=24),
            Text(status, no_wrap=True, overflow="ellipsis"),
        )
        # Called from the refreshing thread as well: what runs is copied before it is counted.
        running, now = list(self.running.items()), time.monotonic()
        lines = [
            Text(f"  {self.cells[job].label}  {duration(now - since)}", no_wrap=True, overflow="ellipsis")
            for job, since in running[:VISIBLE_RUNNING]
        ]
        if len(running) > VISIBLE_RUNNING:
            lines.append(Text(f"  and {len(running) - VISIBLE_RUNNING} more"))
        return Group(bar, *lines)


def finished_lines(cell: Cell, outcome: Outcome) -> list[str]:
    """Return the line that says how a cell ended."""
    ending = f": {outcome.error}" if outcome.error else f"  {duration(outcome.seconds)}"
    ending += f"  {outcome.told}" if outcome.told else ""
    return [f"{outcome.status:<6}  {cell.label}{ending}"]


def make_bench_progress(
    cells: Sequence[Cell], already_done: int, compared: Sequence[str], *, quiet: bool, unknown: int = 0
) -> BenchProgress:
    """Return the display that suits where the output goes."""
    if quiet:
        return BenchProgress(cells, already_done, compared, unknown)
    if not sys.stdout.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return PlainProgress(cells, already_done, compared, sys.stdout, unknown)
    from rich.console import Console

    return LiveProgress(cells, already_done, compared, Console(), unknown)
