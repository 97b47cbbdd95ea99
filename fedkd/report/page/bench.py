"""The page of a bench, from its study and its table of cells."""

import csv
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from fedkd.report.chart import Chart
from fedkd.report.figures import metric_charts, plane_charts
from fedkd.report.page.bench_findings import bench_findings
from fedkd.report.page.figure import MOST_PANELS, Figure, chart_figures
from fedkd.report.page.page import Page, Section
from fedkd.report.study import Study
from fedkd.report.tables import MISSING, Cell, Table, comparison_table, explained, stopped_text
from fedkd.tracking import CELLS_FILE


def bench_page(study: Study, folder: Path, source: str | None) -> Page:
    """Return the page of a bench folder; `source` is the text of its bench file."""
    sections = [Section("Comparison", [comparison_table(study)], explained(study))]
    for shown in study.shown:
        title = shown.label[:1].upper() + shown.label[1:]
        sections.append(Section(title, _figures(metric_charts(study, shown))))
    sections.append(Section("Pairs of final values", _figures(plane_charts(study))))
    sections.append(Section("Cells", [*_cells(folder)]))
    runs, blocks, notes = len(study.runs), len(study.blocks), []
    if study.missing:
        notes.append(f"{study.missing} of {study.missing + study.stopped + runs} runs are missing.")
    if study.stopped:
        notes.append(stopped_text(study))
    if blocks > MOST_PANELS:
        notes.append(f"Figures show the first {MOST_PANELS} of {blocks} settings; tables show all.")
    seeds = sorted({run.seed for run in study.runs})
    facts = [
        ("runs", str(runs)),
        ("seeds", ", ".join(map(str, seeds)) if len(seeds) <= 8 else str(len(seeds))),
        *((study.title(axis), ", ".join(axis.levels)) for axis in study.axes if len(axis.levels) <= 8),
    ]
    sources = [("bench.toml", source)] if source is not None else []
    return Page(
        study.name, "fedkd · report of a bench", sections, bench_findings(study), facts, notes, sources
    )


def _figures(charts: Iterable[tuple[str, Callable[[], Chart]]]) -> list[Figure]:
    return [figure for _, chart in charts for figure in chart_figures(chart())]


def _cells(folder: Path) -> Iterator[Table]:
    """Yield the table of cells from its CSV file in the folder."""
    try:
        with (folder / CELLS_FILE).open(encoding="utf-8", newline="") as file:
            columns, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error, UnicodeDecodeError):
        return
    if rows and all(len(row) == len(columns) for row in rows):
        yield Table("cells", "Runs", columns, [[*map(_read, row)] for row in rows], open=False)


def _read(text: str) -> str | Cell:
    try:
        value = float(text)
    except ValueError:
        return text or Cell(MISSING)
    return Cell(f"{value:.6g}", value) if value == value and abs(value) != float("inf") else text
