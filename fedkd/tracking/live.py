"""The live table of a run by rich, on a terminal or in a notebook."""

import io
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedkd.scenario import Scenario
from fedkd.tracking import wording
from fedkd.tracking.events import RoundReport, RunReport
from fedkd.tracking.phase_watch import Display
from fedkd.tracking.task_matrix import TaskMatrix

VISIBLE_ROUNDS = 10
REFRESHES_PER_SECOND = 4
# Lines of the display besides rounds: the table's head and margins, the mark of hidden rounds, the bar.
LINES_AROUND_ROUNDS = 8
VISIBLE_TASKS = 10
# Lines of the accuracy matrix besides tasks: its title, its head, and an empty line.
LINES_AROUND_TASKS = 3
TASK_LABEL_WIDTH, TASK_COLUMN_WIDTH = 10, 7

COLUMNS = (
    "\nround", "local acc.\nbefore/after", "global acc.\nbefore/after", "local\ngain", "\nup", "\ndown",
    "\nsec.",
)  # fmt: skip
TASK_COLUMN, NEIGHBOURS_COLUMN = "\ntask", "effective\nneighbours"
# Least terminal widths that have room for these columns.
WIDTH_WITH_TASK, WIDTH_WITH_NEIGHBOURS, WIDTH_WITH_BOTH = 90, 94, 102

NOTEBOOK_SIZE = (104, 40)  # characters, lines
NOTEBOOK_SECONDS = 0.5  # least time between two updates of a notebook
NOTEBOOK_FORMAT = '<pre style="white-space:pre;overflow-x:auto;line-height:normal">{code}</pre>'


class RunTable(Display):
    """A table of the last rounds, above a progress bar."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._console = console
        self._reports: deque[RoundReport] = deque(maxlen=VISIBLE_ROUNDS)
        self._shown_from, self._running = 0, False
        self._phase = "starting"

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        super().run_started(scenario, folder, resumed_from)
        if resumed_from:
            self._recall(scenario, folder)
        self._shown_from, self._running = resumed_from, True
        self._phase = "starting"

    def went_back(self, scenario: Scenario, folder: Path, done: int) -> None:
        super().went_back(scenario, folder, done)
        kept = [report for report in self._reports if report.round <= done]
        self._reports = deque(kept, maxlen=VISIBLE_ROUNDS)

    def round_finished(self, report: RoundReport) -> None:
        self._reports.append(report)
        if self._matrix is not None:
            self._matrix.add(report)
        super().round_finished(report)

    def run_finished(self, report: RunReport) -> None:
        self.closed()
        for line in wording.closing_lines(report):
            self.message(line)

    def failed(self, error: BaseException) -> None:
        self.closed()

    def closed(self) -> None:
        self._running = False

    def _display(self) -> RenderableType:
        # The refreshing thread calls this too: copy the reports before counting them.
        reports = list(self._reports)
        learned = {} if self._matrix is None else self._matrix.rows()
        room = max(1, self._console.height - LINES_AROUND_ROUNDS)
        rows = min(len(learned), VISIBLE_TASKS, room // 2 - LINES_AROUND_TASKS)
        if rows > 0:
            room -= rows + LINES_AROUND_TASKS
        parts: list[RenderableType] = [self._table(reports, room)] if reports else []
        if rows > 0 and self._matrix is not None:
            parts += [self._accuracies(self._matrix, dict(list(learned.items())[-rows:])), ""]
        # After the last round or an interruption no phase is under way.
        if self._running and self._finished < self._rounds:
            parts.append(self._bar())
        return Group(*parts)

    def _table(self, reports: list[RoundReport], room: int) -> Table:
        visible = reports[-room:]
        table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
        stream, width = self._matrix is not None, self._console.width
        # On a narrow terminal the accuracy matrix and the bar show the task.
        with_task = stream and width >= WIDTH_WITH_TASK
        with_neighbours = width >= (WIDTH_WITH_BOTH if stream else WIDTH_WITH_NEIGHBOURS)

        def whole(cells: Sequence[RenderableType], task: str, neighbours: str) -> list[RenderableType]:
            tasks, others = [task] * with_task, [neighbours] * with_neighbours
            return [cells[0], *tasks, *cells[1:-3], *others, *cells[-3:]]

        shown = visible[-1].metric
        for title in whole(COLUMNS, TASK_COLUMN, NEIGHBOURS_COLUMN):
            title = title if shown == "accuracy" else str(title).replace("acc.", shown)
            table.add_column(title, justify="right", no_wrap=True)
        if visible[0].round > self._shown_from + 1:
            table.add_row("⋮")
        for report in visible:
            neighbours = wording.count(report.effective_neighbours)
            table.add_row(*whole(_cells(report, self._clients), self._task(report.task), neighbours))
        return table

    def _task(self, task: int | None) -> str:
        return (
            wording.MISSING_VALUE
            if task is None or self._matrix is None
            else f"{task + 1}/{self._matrix.tasks}"
        )

    def _accuracies(self, matrix: TaskMatrix, learned: Mapping[int, list[float | None]]) -> RenderableType:
        """Return the last rows of the accuracy matrix, with as many columns as fit."""
        fitting = max(1, (self._console.width - TASK_LABEL_WIDTH) // TASK_COLUMN_WIDTH)
        end = matrix.tasks if matrix.tasks <= fitting else max(max(learned) + 1, fitting)
        columns = range(max(0, end - fitting), end)
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        table.add_column("on task", min_width=TASK_LABEL_WIDTH - 2, no_wrap=True)
        for task in columns:
            table.add_column(str(task + 1), justify="right", min_width=TASK_COLUMN_WIDTH - 2, no_wrap=True)
        for task, accuracies in learned.items():
            cells = [
                Text(
                    wording.share(accuracies[j]) if accuracies[j] is not None else "",
                    style="bold" * (j == task),
                )
                for j in columns
            ]
            table.add_row(f"after {task + 1}", *cells)
        title = f"{wording.protocol_name(matrix.protocol)} accuracy (%) on common test sets"
        return Group(Text(title, no_wrap=True, overflow="ellipsis"), table)

    def _bar(self) -> RenderableType:
        bar = ProgressBar(total=max(1, self._rounds), completed=self._finished, width=24)
        line = Table.grid(padding=(0, 2))
        left = self._pace.left(self._rounds - self._finished, self._clock() - self._began)
        parts = [f"round {self._round}/{self._rounds}"]
        if self._schedule is not None and self._schedule.in_step:
            parts.append(f"task {self._task(self._schedule.task(0, self._round))}")
        parts += self._parts(with_left=left is None)
        if left is not None:
            parts.append(f"{wording.format_time_left(left)} left")
        line.add_row(bar, Text(" · ".join(parts), no_wrap=True, overflow="ellipsis"))
        return line


class LiveProgress(RunTable):
    """The table on a terminal; other output appears above it."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console or Console())
        self._live: Live | None = None

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        super().run_started(scenario, folder, resumed_from)
        self._live = Live(
            get_renderable=self._display, console=self._console, refresh_per_second=REFRESHES_PER_SECOND
        )
        self._live.start()

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def closed(self) -> None:
        super().closed()
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()


class NotebookProgress(RunTable):
    """The table as HTML with all messages below; `show` replaces the previous HTML."""

    def __init__(self, show: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(_notebook_console(), clock)
        self._show = show
        self._messages: list[str] = []
        self._shown = clock() - NOTEBOOK_SECONDS

    def went_back(self, scenario: Scenario, folder: Path, done: int) -> None:
        super().went_back(scenario, folder, done)
        self._refresh()

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        super().phase(round, phase, done, total)
        if self._clock() - self._shown >= NOTEBOOK_SECONDS:
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
        console = _notebook_console()
        console.print(self._display(), Text("\n".join(self._messages)), soft_wrap=True)
        self._show(console.export_html(inline_styles=True, code_format=NOTEBOOK_FORMAT))
        self._shown = self._clock()


def _notebook_console() -> Console:
    width, height = NOTEBOOK_SIZE
    return Console(
        file=io.StringIO(), record=True, width=width, height=height, color_system="truecolor",
        force_terminal=True, force_jupyter=False,
    )  # fmt: skip


def _cells(report: RoundReport, clients: int) -> list[RenderableType]:
    sign = wording.format_gain(report)
    colour = (
        {"+": "green", "-": "red"}.get(sign[0], "") if sign not in (wording.MISSING_VALUE, "+0.0 pt") else ""
    )
    return [
        f"{report.round}/{report.rounds}",
        wording.before_after(report, "local"),
        wording.before_after(report, "global"),
        Text(wording.gain(report, clients, of_all=False), style=colour),
        wording.format_bytes(report.bytes_up),
        wording.format_bytes(report.bytes_down),
        f"{report.seconds:.1f}" if report.seconds < 99.95 else f"{report.seconds:.0f}",
    ]
