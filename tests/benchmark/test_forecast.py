"""Forecasts of a bench: batches, stops, the record of each cell, and no change of any measured number."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from fedkd.benchmark import forecast_words
from fedkd.benchmark.cells import make_axes, make_cells
from fedkd.benchmark.forecast import (
    FORECAST,
    Bar,
    Basis,
    Forecasts,
    Rule,
    _Follower,
    read_forecasts,
)
from fedkd.benchmark.forecast_batches import _batches, _first_batch, make_rule
from fedkd.benchmark.learning_curves import Forecast
from fedkd.benchmark.runner import BenchResult, bench, plan_bench
from fedkd.benchmark.schema import ForecastFile, load_bench
from fedkd.cli.main import main
from fedkd.errors import UserError
from fedkd.report.comparison import compare
from fedkd.scenario.schema import Scenario
from fedkd.tracking.events import RoundReport, RunObserver

pytestmark = pytest.mark.usefixtures("no_rendering", "no_report")

LAST = 8
SPEC = ForecastFile(metric="accuracy_global", stop=True)


def rising(end: float) -> dict[int, float]:
    return {round: end * (1 - 0.5**round) for round in range(1, LAST + 1)}


@pytest.fixture
def forecast_bench(tables, write) -> Path:
    """A bench of three strategies and three seeds, whose forecasts have intervals and stop cells."""
    tables["scenario"]["rounds"] = 3
    grid = {"fusion.strategy": ["local", "knfu", "fedmd", "dsfl"]}
    told = {"metric": "accuracy_global", "confidence": 0.5, "stop": True}
    return write(tables | {"seeds": 3, "grid": grid, "parallel": False, "forecast": told})


def test_each_setting_keeps_two_seeds_and_the_leader_the_baseline_and_bounds_keep_all(tables, write):
    grid = {"fusion.strategy": ["local", "centralized", "knfu", "fedmd"], "fusion.temperature": [1.0, 2.0]}
    loaded = load_bench(write(tables | {"seeds": 4, "grid": {"fusion.strategy": grid["fusion.strategy"]}}))
    cells, compared = make_cells(loaded), ("fusion.strategy",)
    assert len(make_axes(loaded)) == 1
    curves = {}
    first = _first_batch(cells, compared, {"fusion.strategy": "local"})
    batches = _batches(cells, first, curves, compared)

    def names(batch):
        return [(cell.scenario.fusion.strategy, cell.seed) for cell in batch]

    assert names(next(batches)) == [
        *((name, seed) for seed in (1, 2) for name in ("local", "centralized", "knfu", "fedmd")),
        *((name, seed) for seed in (3, 4) for name in ("local", "centralized")),
    ]
    ends = {"local": 0.5, "centralized": 0.9, "knfu": 0.6, "fedmd": 0.7}
    curves |= {cell: rising(ends[cell.scenario.fusion.strategy] + 0.01 * cell.seed) for cell in first}
    leading = next(batches)
    assert names(leading) == [("fedmd", 3), ("fedmd", 4)]
    assert not make_rule(leading, curves, SPEC, compared).bars
    curves |= {cell: rising(0.72) for cell in leading}
    rest = next(batches)
    assert names(rest) == [("knfu", 3), ("knfu", 4)]
    bars = make_rule(rest, curves, SPEC, compared).bars
    assert bars.keys() == {cell.folder_name for cell in rest}
    shrunk = max(rising(1.0).values())
    for bar in bars.values():
        assert bar.value == pytest.approx(0.72 * shrunk) and bar.lags == pytest.approx([-0.1 * shrunk] * 2)
    assert next(batches, None) is None


def followed(tmp_path: Path, end: float, bar: float | None, stop: bool = True) -> tuple[Forecasts, int]:
    """Return the forecasts of a cell that rises to `end`, and the rounds that it ran."""
    scenario = Scenario.model_validate({"name": "demo", "rounds": LAST, "data": {"dataset": "digits"}})
    basis = Basis.of([rising(0.5 + 0.02 * n) for n in range(12)], 0.9)
    bars = {} if bar is None else {tmp_path.name: Bar(bar, (-0.3, -0.31))}
    follower = _Follower(Rule(SPEC.metric, 0.9, stop, {f"digits {LAST}": basis}, bars), tmp_path, scenario)
    follower.run_started(scenario, tmp_path, 0)
    for round, value in rising(end).items():
        try:
            follower.round_finished(RoundReport(round, LAST, accuracy_global=value))
        except KeyboardInterrupt:
            return follower.told, round
    return follower.told, LAST


def test_a_cell_stops_once_its_interval_ends_below_the_bar(tmp_path):
    told, ran = followed(tmp_path, end=0.3, bar=0.7)
    assert told.stopped and told.behind == ran == 2  # a quarter of the rounds
    assert told.forecasts[-1].high < 0.7
    assert read_forecasts(tmp_path) == told
    assert forecast_words(tmp_path).startswith("forecast after round 2: accuracy_global ")


@pytest.mark.parametrize(("end", "bar", "stop"), [(0.8, 0.7, True), (0.3, None, True), (0.3, 0.7, False)])
def test_good_cells_cells_without_a_bar_and_unstopped_benches_run_on(tmp_path, end, bar, stop):
    told, ran = followed(tmp_path, end, bar, stop)
    assert ran == LAST and not told.stopped
    assert [each.round for each in told.forecasts] == list(range(2, LAST))
    assert (told.behind == 2) == (bar is not None and not stop)


def test_a_setting_is_out_of_reach_if_it_is_behind_and_not_tied():
    def far(bar: Bar, value: float, high: float | None) -> bool:
        return bar.is_out_of_reach(Forecast(3, value, 0.0, high))

    lags = np.array([-0.1, -0.12, -0.11])
    assert abs(lags.mean()) > 4.302653 * lags.std(ddof=1) / np.sqrt(3)  # Student's t, two degrees of freedom
    assert far(Bar(0.8, (-0.1, -0.12)), 0.6, 0.69)
    assert not far(Bar(0.8, (-0.1, -0.12)), 0.69, 0.81)  # it may reach the bar
    assert not far(Bar(0.8, (-0.1, -0.12)), 0.69, 0.79)  # tied at the upper end
    assert not far(Bar(0.8, (-0.01, -0.3)), 0.6, 0.69)  # lags vary too much
    assert not far(Bar(0.8), 0.1, 0.2)  # one difference has no interval
    assert not far(Bar(0.8, (-0.1, -0.12)), 0.69, None)


def test_a_damaged_record_is_no_forecast(tmp_path):
    (tmp_path / FORECAST).write_text('{"metric": 3')
    assert read_forecasts(tmp_path) is None and forecast_words(tmp_path) == ""


@pytest.fixture(scope="module")
def both(make_tables, tmp_path_factory) -> tuple[BenchResult, BenchResult]:
    """A bench without stops, and the same bench with them."""
    import tomli_w

    folder, tables = tmp_path_factory.mktemp("forecast"), make_tables()
    tables["scenario"]["rounds"] = 4
    grid = {"fusion.strategy": ["local", "knfu", "fedmd"]}
    told = {"metric": "accuracy_global", "confidence": 0.5, "stop": False}
    tables |= {"seeds": 3, "grid": grid, "parallel": False, "forecast": told}
    (folder / "bench.toml").write_text(tomli_w.dumps(tables))
    return (
        bench(folder / "bench.toml", out=folder / "whole"),
        bench(folder / "bench.toml", out=folder / "stopped", overrides=["forecast.stop=true"]),
    )


def test_stops_change_no_measured_number(both):
    whole, stopped = both
    ended = [cell for cell in stopped.cells if cell.outcome.status == "stopped"]
    assert ended and all(cell.done for cell in whole.cells)
    for full, cell in zip(whole.cells, stopped.cells, strict=True):
        measured = (cell.folder / "metrics.jsonl").read_text()
        assert (full.folder / "metrics.jsonl").read_text().startswith(measured)
        assert cell.outcome.status == "stopped" or cell.done
        told, would = read_forecasts(cell.folder), read_forecasts(full.folder)
        if cell.outcome.status == "stopped":
            assert told.behind == would.behind and told.forecasts == would.forecasts[: len(told.forecasts)]
            assert told.bar.is_out_of_reach(told.forecasts[-1])


def test_stopped_cells_are_counted_unranked_and_listed(both):
    _, stopped = both
    number = sum(cell.outcome.status == "stopped" for cell in stopped.cells)
    assert stopped.study.stopped == number and not stopped.study.missing
    assert "stopped on a forecast. Rows with fewer seeds cannot be compared" in stopped.table()
    for row in compare(stopped.study):
        assert row.seeds == 3 or not any(entry.best or entry.tied for entry in row.entries)
    with (stopped.folder / "forecasts.csv").open() as file:
        rows = list(csv.DictReader(file))
    ended = [row for row in rows if row["status"] == "stopped" and row["rounds_saved"] != "0"]
    assert len(ended) == number
    for row in ended:
        assert row["measured"] == "" and int(row["rounds_saved"]) == 4 - int(row["round"])
        assert float(row["high"]) < float(row["best_measured"])
    with (stopped.folder / "cells.csv").open() as file:
        assert sum(row["status"] == "stopped" for row in csv.DictReader(file)) == number


def test_stopped_cells_stay_stopped_and_run_on_if_asked(both, tmp_path):
    whole, stopped = both
    path = stopped.folder.parent / "bench.toml"
    asked = ["forecast.stop=true"]
    assert plan_bench(path, asked, stopped.folder).waiting() == []
    again = bench(path, out=stopped.folder, overrides=asked)
    assert again.study == stopped.study
    went_on = bench(path, out=stopped.folder)
    for full, cell in zip(whole.cells, went_on.cells, strict=True):
        assert (full.folder / "metrics.jsonl").read_bytes() == (cell.folder / "metrics.jsonl").read_bytes()
        assert read_forecasts(cell.folder) == read_forecasts(full.folder)


def test_watch_shows_the_newest_forecast(both):
    from fedkd.cli.watch import watch

    class Lines(RunObserver):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def message(self, text: str) -> None:
            self.lines.append(text)

    cell = next(cell for cell in both[0].cells if forecast_words(cell.folder))
    seen = Lines()
    watch(cell.folder, once=True, observer=seen)
    assert seen.lines[0] == forecast_words(cell.folder)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("forecast.confidence=1.5", "forecast.confidence: must be"),
        ("forecast.metric='loss_local'", "forecast.metric: must be"),
        ("forecast.patience=3", "forecast.patience: unknown key"),
    ],
)
def test_wrong_keys_are_one_line(forecast_bench, capsys, told, says):
    assert main(["bench", str(forecast_bench), "--dry-run", "--set", told]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_streams_of_tasks_have_no_forecast(tables, write):
    tables["scenario"]["continual"] = {"learner": "naive", "tasks": {"kind": "split", "count": 2}}
    path = write(tables | {"forecast": json.loads(SPEC.model_dump_json())})
    with pytest.raises(UserError, match="must be left out with a stream of tasks"):
        plan_bench(path)
