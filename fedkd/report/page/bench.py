"""The page of a bench, from its study and its table of cells."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.report.comparison import Entry, Row, compare
from fedkd.report.curves import Points, curve_over_seeds
from fedkd.report.metrics import Metric, metric
from fedkd.report.page.figure import (
    Cell,
    Figure,
    Table,
    Trace,
    axes,
    band,
    line,
    log_axis,
    over_rounds,
    over_tasks,
    plain,
)
from fedkd.report.page.page import Page, Section
from fedkd.report.study import Labels, Study, StudyRun, final_interval, group_title
from fedkd.report.style import group_looks
from fedkd.report.tables import MISSING, TIED, difference_text, explained, number_text
from fedkd.tracking.folder import CELLS

DASH = {"-": "solid", "--": "dash", "-.": "dashdot"}
SYMBOL = {
    "o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross",
    "X": "x", "<": "triangle-left", ">": "triangle-right", "*": "star", "x": "x-thin-open",
}  # fmt: skip
"""Lines and markers of matplotlib as Plotly calls them."""
MOST_BANDS = 6
"""Groups whose bands can be told apart in one figure; of more there are lines alone, each to be chosen."""
MOST_BLOCKS = 12
"""Blocks that each have a figure; more would be a page that nobody reads."""


def bench_page(study: Study, folder: Path, source: str | None) -> Page:
    """Return the page of a bench.

    Args:
        study: Its runs.
        folder: The bench folder.
        source: The bench file; None: it is not known.
    """
    sections = [Section("Comparison", [comparison_table(study)], explained(study))]
    for shown in study.shown:
        figures = [*_over_rounds(study, shown), *_over_traffic(study, shown), *_over_time(study, shown)]
        figures += _over_tasks(study, shown)
        sections.append(Section(shown.label[:1].upper() + shown.label[1:], figures))
    sections.append(Section("Local against global", [*_scatter(study)]))
    sections.append(Section("Cells", [*_cells(folder)]))
    dropped = len(study.blocks) - MOST_BLOCKS
    notes = (
        [f"{study.missing} of {study.missing + len(study.runs)} runs are missing."] if study.missing else []
    )
    if dropped > 0:
        notes.append(
            f"Figures are of the first {MOST_BLOCKS} of {len(study.blocks)} settings; tables are of all."
        )
    seeds = sorted({run.seed for run in study.runs})
    return Page(
        title=study.name,
        subtitle="fedkd · report of a bench",
        sections=sections,
        facts=[
            ("runs", str(len(study.runs))),
            ("seeds", ", ".join(map(str, seeds)) if len(seeds) <= 8 else str(len(seeds))),
            *((study.title(axis), ", ".join(axis.levels)) for axis in study.axes if len(axis.levels) <= 8),
        ],
        notes=notes,
        sources=[("bench.toml", source)] if source is not None else [],
    )


def comparison_table(study: Study) -> Table:
    """Return a row a group: what it reached, with intervals over seeds, and what that is to the baseline."""
    titles = [study.title(axis) for axis in (*study.block_axes, *study.compared_axes)] + ["seeds"]
    for shown in study.shown:
        titles.append(shown.label)
        if study.baseline:
            unit = f" ({shown.difference_unit})" if shown.difference_unit else ""
            titles.append(f"Δ to {group_title(study.baseline)}{unit}")
    rows = [[*row.block, *row.group, row.seeds, *_entries(row, study)] for row in compare(study)]
    return Table("comparison", "Every setting", titles, rows, "A click on a heading sorts.")


def _entries(row: Row, study: Study) -> Iterator[Cell]:
    for shown, entry in zip(study.shown, row.entries, strict=True):
        yield _cell(entry, shown)
        if study.baseline:
            difference = entry.difference
            value = None if difference is None else difference.mean * shown.scale
            yield Cell(difference_text(entry, shown), value)


def _cell(entry: Entry, shown: Metric) -> Cell:
    if entry.value is None:
        return Cell(MISSING)
    text = number_text(entry.value, shown) + f" {TIED}" * (entry.tied and not entry.best)
    return Cell(text, entry.value.mean * shown.scale, entry.best)


# Figures ----------------------------------------------------------------------------------------------


def _blocks(study: Study) -> Iterator[tuple[int, Labels, dict[Labels, tuple[StudyRun, ...]]]]:
    for place, (block, groups) in enumerate(list(study.blocks.items())[:MOST_BLOCKS]):
        yield place, block, groups


def _over_rounds(study: Study, shown: Metric) -> Iterator[Figure]:
    yield from _curves(
        study,
        shown,
        "rounds",
        "over rounds",
        lambda run: run.curves.get(shown.name, ()),
        over_rounds(shown.label),
    )


def _over_tasks(study: Study, shown: Metric) -> Iterator[Figure]:
    tasks = max((len(run.tasks.get(shown.name, ())) for run in study.runs), default=0)
    layout = over_tasks(shown.label, tasks)
    yield from _curves(study, shown, "tasks", "over tasks", lambda run: run.tasks.get(shown.name, ()), layout)


def _over_traffic(study: Study, shown: Metric) -> Iterator[Figure]:
    def curve(run: StudyRun) -> Points:
        """Return the metric over megabytes so far, of a run that sends some."""
        sent = dict(run.traffic)
        if not run.traffic or not run.traffic[-1][1]:
            return ()
        return tuple((sent.get(round, 0) / 1e6, v) for round, v in run.curves.get(shown.name, ()))

    layout = axes("sent so far, up and down (MB)", shown.label, hovermode="closest")
    yield from _curves(study, shown, "traffic", "against bytes", curve, layout, by_place=True)


def _over_time(study: Study, shown: Metric) -> Iterator[Figure]:
    def curve(run: StudyRun) -> Points:
        """Return the metric over simulated time, of a run with a clock."""
        passed = dict(run.clock)
        return tuple((passed[round], v) for round, v in run.curves.get(shown.name, ()) if round in passed)

    layout = axes("simulated time (s)", shown.label, hovermode="closest")
    yield from _curves(study, shown, "time", "against simulated time", curve, layout, by_place=True)


def _curves(
    study: Study,
    shown: Metric,
    kind: str,
    words: str,
    curve: Callable[[StudyRun], Points],
    layout: dict[str, Any],
    *,
    by_place: bool = False,
) -> Iterator[Figure]:
    """Yield a figure a block: a line a group, with its interval over seeds, or each of few seeds."""
    for place, block, groups in _blocks(study):
        data: list[Trace] = []
        rows: list[list[object]] = []
        reached: list[float] = []
        for (group, runs), (colour, dash, symbol) in zip(groups.items(), _looks(study, groups), strict=True):
            found = curve_over_seeds([own for run in runs if len(own := curve(run)) > 1], by_place=by_place)
            if found is None:
                continue
            title = group_title(group) or study.name
            x, mean = found.x.tolist(), found.mean * shown.scale
            reached.append(x[-1])
            half = None if found.half is None else found.half * shown.scale
            if half is not None and len(groups) <= MOST_BANDS:
                ends = _within(mean - half, shown), _within(mean + half, shown)
                data.append(band(title, x, *ends, colour, showlegend=False, legendgroup=plain(title)))
            for one in found.seeds if found.half is None and len(found.seeds) > 1 else ():
                faint = line(title, x, one * shown.scale, colour, width=0.8, dash=dash)
                data.append(
                    faint
                    | {"mode": "lines", "showlegend": False, "opacity": 0.6, "legendgroup": plain(title)}
                )
            data.append(line(title, x, mean, colour, dash=dash, symbol=symbol, legendgroup=plain(title)))
            halves = [""] * len(x) if found.half is None else found.half.tolist()
            rows += [[title, *row] for row in zip(x, found.mean.tolist(), halves, strict=True)]
        if data:
            where = study.block_title(block)
            across = layout["xaxis"] | (log_axis(reached) if by_place else {})
            yield Figure(
                f"{kind}-{shown.name}-{place}",
                f"{words.capitalize()}{f': {where}' if where else ''}",
                ["group", "x", "mean", "half_width"],
                rows,
                data,
                layout | {"xaxis": across},
                "Means over seeds; bands are 95 % intervals, from three seeds on; thin lines are seeds.",
                360,
            )


def _looks(study: Study, groups: Iterable[Labels]) -> list[tuple[str, str, str]]:
    """Return a colour, a dash and a symbol for every group: those of the other figures of the bench."""
    looks = group_looks(study)
    return [
        (looks[group].colour, DASH.get(looks[group].line, "dot"), SYMBOL.get(looks[group].marker, "circle"))
        for group in groups
    ]


def _within(values: np.ndarray, shown: Metric) -> np.ndarray:
    """Return ends of intervals where shares can be: Student's t knows nothing of 0 and 100 %."""
    return np.clip(values, 0.0, 100.0) if shown.unit == "%" else values


def _scatter(study: Study) -> Iterator[Figure]:
    across, up = metric("accuracy_global"), metric("accuracy_local")
    for place, block, groups in _blocks(study):
        data, rows = [], []
        for (group, runs), (colour, _, symbol) in zip(groups.items(), _looks(study, groups), strict=True):
            x, y = final_interval(runs, across), final_interval(runs, up)
            if x is None or y is None:
                continue
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": plain(group_title(group) or study.name),
                    "x": [100 * x.mean],
                    "y": [100 * y.mean],
                    "error_x": _bar(x.half, colour),
                    "error_y": _bar(y.half, colour),
                    "marker": {"size": 9, "color": colour, "symbol": symbol},
                }
            )
            rows.append([group_title(group), x.mean, x.half, y.mean, y.half])
        if data:
            where = study.block_title(block)
            yield Figure(
                f"scatter-{place}",
                where or "All groups",
                ["group", "accuracy_global", "half_width", "accuracy_local", "half_width"],
                rows,
                data,
                axes(across.label, up.label, hovermode="closest"),
                "After the last round; bars are 95 % intervals.",
                380,
            )


def _bar(half: float | None, colour: str) -> dict[str, object]:
    return {"type": "data", "array": [100 * (half or 0.0)], "thickness": 1, "color": colour}


def _cells(folder: Path) -> Iterator[Table]:
    """Yield the table of cells, as it was written beside."""
    try:
        with (folder / CELLS).open(encoding="utf-8", newline="") as file:
            columns, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error, UnicodeDecodeError):
        return
    if rows and all(len(row) == len(columns) for row in rows):
        yield Table("cells", "Every run", columns, [[*map(_read, row)] for row in rows], open=False)


def _read(text: str) -> str | Cell:
    try:
        value = float(text)
    except ValueError:
        return text or Cell(MISSING)
    return Cell(f"{value:.6g}", value) if value == value and abs(value) != float("inf") else text
