"""Forecasts of a bench beside measured values: `forecasts.csv`, their errors, and the time saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fedkd.benchmark.cells import Axis, Cell
from fedkd.benchmark.finished import read_summary
from fedkd.benchmark.forecast import Forecasts, read_curve, read_forecasts
from fedkd.benchmark.learning_curves import Forecast
from fedkd.benchmark.results import axis_value
from fedkd.report import csv_text
from fedkd.storage import write_text_atomically
from fedkd.tracking import format_duration, read_timings

FORECASTS = "forecasts.csv"


@dataclass(frozen=True)
class ForecastRow:
    """One forecast of a cell, with the value that was measured at the end; None: the cell was stopped."""

    cell: Cell
    status: str
    forecast: Forecast
    measured: float | None
    told: Forecasts
    rounds_saved: int  # at the round after which the cell is first behind, else 0
    seconds_saved: float

    @property
    def holds(self) -> bool | None:
        """Whether the interval holds the measured value; None: one of them is missing."""
        low, high = self.forecast.low, self.forecast.high
        return None if self.measured is None or low is None or high is None else low <= self.measured <= high


def forecast_rows(cells: Sequence[Cell], runs: Path) -> list[ForecastRow]:
    """Return all forecasts of a bench."""
    rows = []
    for cell in cells:
        folder = runs / cell.folder_name
        told = read_forecasts(folder)
        if told is None:
            continue
        done = read_summary(folder) is not None
        if not done and not told.stopped:
            continue
        measured = read_curve(folder, told.metric).get(told.last) if done else None
        seconds = [row.get("seconds", 0.0) for row in read_timings(folder) if row.get("round", 0) > 0]
        for each in told.forecasts:
            saved = told.last - each.round if each.round == told.behind else 0
            rounds = max(1, told.last if done else each.round)
            spent = saved * sum(seconds) / rounds
            rows.append(ForecastRow(cell, "done" if done else "stopped", each, measured, told, saved, spent))
    return rows


def write_forecasts(rows: Sequence[ForecastRow], axes: Sequence[Axis], folder: Path) -> None:
    """Write `forecasts.csv`: a row per forecast."""
    names = ("forecast", "low", "high", "measured", "best_measured")
    table: list[list[Any]] = []
    for row in rows:
        each = row.forecast
        values = (each.value, each.low, each.high, row.measured, row.told.bar and row.told.bar.value)
        table.append(
            [axis_value(row.cell, axis) for axis in axes]
            + [row.cell.seed, row.status, each.round, row.told.last]
            + ["" if value is None else value for value in values]
            + [row.rounds_saved, round(row.seconds_saved, 3)]
        )
    heads = [*(axis.name for axis in axes), "seed", "status", "round", "last_round", *names]
    write_text_atomically(folder / FORECASTS, csv_text([*heads, "rounds_saved", "seconds_saved"], table))


def forecast_line(rows: Sequence[ForecastRow], stop: bool) -> str:
    """Return the quality of the forecasts and what the stops save, in words."""
    errors = [abs(row.forecast.value - row.measured) for row in rows if row.measured is not None]
    held = [row.holds for row in rows if row.holds is not None]
    behind = [row for row in rows if row.rounds_saved]
    parts = [f"{len(rows)} forecasts"]
    if errors:
        parts.append(f"{100 * fmean(errors):.1f} points off on average")
    if held:
        parts.append(f"{sum(held)} of {len(held)} intervals hold")
    stops = f"{len(behind)} cells {'were' if stop else 'would be'} stopped"
    seconds = format_duration(sum(row.seconds_saved for row in behind))
    parts.append(f"{stops}: {sum(row.rounds_saved for row in behind)} rounds and about {seconds} saved")
    return ", ".join(parts)
