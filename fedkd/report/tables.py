"""The table of a bench as Markdown and CSV."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedkd.report.comparison import Entry, Row, Tally, compare, tally
from fedkd.report.metrics import CONTINUAL_METRICS, Metric
from fedkd.report.statistics import FALSE_DISCOVERY_RATE, Interval
from fedkd.report.study import Study, group_title

MISSING = "–"
TIED = "†"
DIFFERS = "‡"


@dataclass(frozen=True)
class Cell:
    """A cell of a table: the shown text, and the value for sorting and for CSV files."""

    text: str
    value: float | None = None
    strong: bool = False  # bold


@dataclass(frozen=True)
class Table:
    """A table for Markdown, LaTeX and pages; cells are numbers, texts or `Cell`s."""

    name: str  # of its file; unique on the page
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    open: bool = True  # on a page

    @property
    def heads(self) -> list[tuple[str, bool]]:
        """Headings, and whether their columns hold words."""
        return [
            (column, all(isinstance(row[at], str | None) for row in self.rows) and bool(self.rows))
            for at, column in enumerate(self.columns)
        ]


def comparison_table(study: Study) -> Table:
    """Return a row per group: results with intervals over seeds, and differences to the baseline."""
    titles = [study.title(axis) for axis in (*study.block_axes, *study.compared_axes)] + ["seeds"]
    for shown in study.shown:
        titles.append(shown.label)
        if study.baseline:
            unit = f" ({shown.difference_unit})" if shown.difference_unit else ""
            titles.append(f"Δ to {group_title(study.baseline)}{unit}")
    rows = [[*row.block, *row.group, row.seeds, *_cells(row, study)] for row in compare(study)]
    return Table("comparison", "Settings", titles, rows, "A click on a heading sorts the table.")


def _cells(row: Row, study: Study) -> Iterator[Cell]:
    for shown, entry in zip(study.shown, row.entries, strict=True):
        value, difference = entry.value, entry.difference
        text = number_text(value, shown) + f" {TIED}" * (entry.tied and not entry.best)
        yield Cell(text, None if value is None else value.mean * shown.scale, entry.best)
        if study.baseline:
            scaled = None if difference is None else difference.mean * shown.scale
            yield Cell(difference_text(entry, shown), scaled)


def markdown_table(study: Study) -> str:
    """Return the table with its legend: a row per group, best values in bold."""
    table = comparison_table(study)
    names = len(study.axes)
    alignment = ["---"] * names + ["--:"] * (len(table.columns) - names)
    lines = [f"# {study.name}", "", _line(map(_plain, table.columns)), _line(alignment)]
    lines += [_line(map(_markdown, row)) for row in table.rows]
    return "\n".join([*lines, "", _legend(study, compare(study), _plain, "**Bold**")]) + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(name: str) -> str:
    """Return a name with Markdown's special characters escaped."""
    return re.sub(r"([\\`*\[\]<>|$])", r"\\\1", name)


def _markdown(cell: Any) -> str:
    if isinstance(cell, Cell):
        return f"**{cell.text}**" if cell.strong else cell.text
    return _plain(str(cell))


def difference_text(entry: Entry, metric: Metric) -> str:
    """Format the difference to the baseline, marked if significant: `+11.0 ± 2.5 ‡`."""
    return number_text(entry.difference, metric, sign="+") + f" {DIFFERS}" * entry.differs


def number_text(value: Interval | None, metric: Metric, sign: str = "") -> str:
    """Format a mean and its interval in the units of a metric: `91.0 ± 2.5`."""
    if value is None:
        return MISSING
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    mean = f"{round(value.mean * metric.scale, metric.decimals) + 0.0:{sign}.{metric.decimals}f}"
    return mean if value.half is None else f"{mean} ± {value.half * metric.scale:.{metric.decimals}f}"


def explained(study: Study) -> str:
    """Return the legend of the table of a study as plain text."""
    return _legend(study, compare(study), str, "Bold")


def _legend(study: Study, rows: Sequence[Row], plain: Callable[[str], str], bold: str) -> str:
    seeds = max((row.seeds for row in rows), default=0)
    ranked = any(entry.best for row in rows for entry in row.entries)
    blocks = [plain(study.title(axis)) for axis in study.block_axes]
    where = f" for the same {' and '.join(blocks)}" if blocks else ""
    parts = ["Means over clients after the last round."]
    if any(name in CONTINUAL_METRICS for name in study.metrics):
        parts.append("Streams are measured on the common test sets. BWT and forgetting are measured with the")
        parts.append("task given if each task has its own head, else without it.")
    if seeds > 1:
        parts.append(f"Mean ± 95 % confidence interval over {seeds} seeds (Student's t).")
    elif seeds == 1:
        parts.append("One seed: there are no intervals.")
    if study.baseline:
        parts.append(f"Δ: difference to {plain(group_title(study.baseline))}{where}, paired by seed.")
    told = tally(rows)
    if told.tested:
        parts.append(
            f"{DIFFERS}: significant at a false discovery rate of {100 * FALSE_DISCOVERY_RATE:.0f} %"
        )
        parts.append("(Benjamini–Hochberg, over all differences of one metric in this table).")
        parts.append(tally_text(told))
    if ranked:
        parts.append(f"{bold}: best mean{where}.")
    if ranked and seeds > 1:
        parts.append(
            f"{TIED}: the 95 % confidence interval of the seed-paired difference from the best contains 0."
        )
    bounds = {plain(group_title(study.group_of(run))) for run in study.runs if run.is_bound}
    if ranked and bounds:
        parts.append(f"Not ranked, as an upper bound: {', '.join(sorted(bounds))}.")
    if study.missing:
        cells = study.missing + study.stopped + len(study.runs)
        parts.append(f"{study.missing} of {cells} runs are missing.")
    if study.stopped:
        parts.append(stopped_text(study))
    nowhere = [name for name in study.metrics if not any(name in run.final for run in study.runs)]
    if nowhere and study.runs:
        parts.append(f"Not recorded by any run: {', '.join(nowhere)}.")
    return " ".join(parts)


def stopped_text(study: Study) -> str:
    """Return the number of runs stopped on a forecast, and its consequence."""
    count = f"{study.stopped} run{'s were' if study.stopped > 1 else ' was'} stopped on a forecast."
    return f"{count} Rows with fewer seeds cannot be compared with the others, and are not ranked."


def tally_text(told: Tally) -> str:
    """Return the numbers of tested, differing and significant differences as text."""
    return (
        f"Of {told.tested:,} differences, {told.excluding:,} have an uncorrected interval that excludes 0"
        f" (expected by chance: {told.by_chance:,.1f}). Significant: {told.marked:,}."
    )


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def csv_table(study: Study) -> str:
    """Return the table as CSV, unscaled and in full precision: a line per group and metric."""
    axes = [*study.block_axes, *study.compared_axes]
    numbers = ("mean", "half_width", "difference", "difference_half_width", "p", "best", "tied", "differs")
    rows: list[list[object]] = []
    for row in compare(study):
        for metric, entry in zip(study.shown, row.entries, strict=True):
            seeds = entry.value.seeds if entry.value else 0
            told = [*_parts(entry.value)[:2], *_parts(entry.difference)]
            flags = [str(flag).lower() for flag in (entry.best, entry.tied, entry.differs)]
            rows.append([*row.block, *row.group, metric.name, seeds, *told, *flags])
    return csv_text([*(axis.name for axis in axes), "metric", "seeds", *numbers], rows)


def _parts(value: Interval | None) -> tuple[float | None, ...]:
    return (None, None, None) if value is None else (value.mean, value.half, value.p)
