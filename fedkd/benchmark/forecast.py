"""Forecasts of a bench's cells while they run, and the stop of hopeless ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError

from fedkd.benchmark.cells import Cell
from fedkd.benchmark.learning_curves import Experience, Forecast
from fedkd.benchmark.worker import CellOutcome, run_cell
from fedkd.errors import UserError
from fedkd.report import paired_difference
from fedkd.scenario import Scenario, scenario_from_json
from fedkd.storage import InvalidJson, parse_json, write_json_atomically
from fedkd.tracking import RoundReport, RunObserver, format_percent, read_metrics

FORECAST = "forecast.json"
FIRST_SHARE = 0.25  # share of the rounds before the first forecast

Curve = dict[int, float]  # round to the federation's mean


@dataclass(frozen=True)
class Basis:
    """Complete curves that forecasts of others are based on."""

    experience: Experience
    last: int  # the round that is forecast
    confidence: float
    errors: Mapping[int, Sequence[float]]  # of the same forecasts of complete curves, by round

    @classmethod
    def of(cls, curves: Sequence[Mapping[int, float]], confidence: float) -> Self:
        """Return the basis of all curves that reach the last round."""
        last = max((max(curve) for curve in curves if curve), default=0)
        experience = Experience(tuple(curve for curve in curves if curve and max(curve) == last))
        rounds = {
            round for curve in experience.curves for round in curve if FIRST_SHARE * last <= round < last
        }
        return cls(
            experience, last, confidence, {round: experience.errors(round) for round in sorted(rounds)}
        )

    def forecast(self, curve: Mapping[int, float]) -> Forecast | None:
        """Forecast a curve from its rounds so far; None: too early, or too little is known."""
        errors = self.errors.get(max(curve))
        return None if errors is None else self.experience.forecast(curve, self.last, self.confidence, errors)


@dataclass(frozen=True)
class Bar:
    """The best setting of a cell's block: what it measured with the same seed, and how far it is ahead."""

    value: float
    lags: tuple[float, ...] = ()  # of the cell's setting behind it, negative, with seeds that are measured

    def is_out_of_reach(self, told: Forecast) -> bool:
        """Return whether a cell with this forecast is hopeless.

        Its interval ends below the bar. Its setting is then not tied with the best one, as tables mark it
        (†): the seed-paired interval of its lags, the last one at the upper end, excludes 0.
        """
        if told.high is None or told.high >= self.value:
            return False
        lags = dict(enumerate([*self.lags, told.high - self.value]))
        difference = paired_difference(lags, dict.fromkeys(lags, 0.0))
        return difference is not None and bool(difference.excludes_zero()) and difference.mean < 0


@dataclass(frozen=True)
class Forecasts:
    """The forecasts of a cell, as its `forecast.json` has them."""

    metric: str
    last: int  # the round that is forecast
    confidence: float
    bar: Bar | None = None  # None: the cell is never stopped
    behind: int | None = None  # first round after which the cell was hopeless
    stopped: bool = False
    forecasts: tuple[Forecast, ...] = ()


@dataclass(frozen=True)
class Rule:
    """Forecasts of a batch's cells, and which of them stop."""

    metric: str
    confidence: float
    stop: bool
    bases: Mapping[str, Basis]  # by `kind_of`
    bars: Mapping[str, Bar]  # by name of the run folder


def kind_of(scenario: Scenario) -> str:
    """Return the data set and the rounds of a scenario; curves are compared within a kind."""
    return f"{scenario.data.dataset} {scenario.rounds}"


def check_forecasts(cells: Sequence[Cell], file: str) -> None:
    """Refuse forecasts of cells whose accuracy is no learning curve."""
    for cell in cells:
        kind = "a stream of tasks" if cell.scenario.continual is not None else "regression"
        if cell.scenario.continual is not None or cell.scenario.data.is_regression:
            told = f"must be left out with {kind}, got cell '{cell.label}'"
            raise UserError(told, key="forecast", file=file)


def read_forecasts(folder: Path) -> Forecasts | None:
    """Return the forecasts of a run; None: there are none, or the file is damaged."""
    try:
        return TypeAdapter(Forecasts).validate_python(parse_json((folder / FORECAST).read_bytes()))
    except (OSError, InvalidJson, ValidationError):
        return None


def is_stopped(folder: Path) -> bool:
    """Return whether a cell was stopped on a forecast."""
    found = read_forecasts(folder)
    return found is not None and found.stopped


def forecast_words(folder: Path) -> str:
    """Return the newest forecast of a run in words; empty: there is none."""
    found = read_forecasts(folder)
    return words(found.forecasts[-1], found.metric) if found is not None and found.forecasts else ""


def words(told: Forecast, metric: str) -> str:
    """Return a forecast in words, with its interval."""
    between = (
        "" if told.low is None or told.high is None else f" ({100 * told.low:.1f}–{100 * told.high:.1f} %)"
    )
    return f"forecast after round {told.round}: {metric} {format_percent(told.value)}{between}"


# One cell -------------------------------------------------------------------------------------------


def read_curve(folder: Path, metric: str, until: int | None = None) -> Curve:
    """Return the federation's mean by round, as a run has recorded it."""
    name, _, split = metric.rpartition("_")
    return {
        row["round"]: float(row["value"])
        for row in read_metrics(folder)
        if (row["metric"], row["split"], row["client"], row["task"]) == (name, split, None, None)
        and row["value"] is not None
        and 0 < row["round"] <= (row["round"] if until is None else until)
    }


def run_forecast(rule: Rule, scenario_json: str, folder: str, gpus: float | None = None) -> CellOutcome:
    """Run or resume a cell, forecast it after its rounds, and stop it if it is hopeless."""
    follower = _Follower(rule, Path(folder), scenario_from_json(scenario_json))
    outcome = run_cell(scenario_json, folder, gpus, observers=[follower])
    if outcome.status == "interrupted" and follower.told.stopped:
        newest = follower.told.forecasts[-1]
        bar = follower.told.bar
        told = f"behind {format_percent(None if bar is None else bar.value)}; {words(newest, rule.metric)}"
        return replace(outcome, status="stopped", told=told)
    return outcome


class _Follower(RunObserver):
    """Forecasts a cell; stops it once the best setting is out of its reach."""

    def __init__(self, rule: Rule, folder: Path, scenario: Scenario) -> None:
        self._rule, self._folder = rule, folder
        self._basis = rule.bases.get(kind_of(scenario))
        last = 0 if self._basis is None else self._basis.last
        self.told = Forecasts(rule.metric, last, rule.confidence, rule.bars.get(folder.name))
        self._curve: Curve = {}

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        before = read_forecasts(folder)
        if not resumed_from or before is None:
            return
        self._curve = read_curve(folder, self._rule.metric, resumed_from)
        kept = tuple(told for told in before.forecasts if told.round <= resumed_from)
        behind = before.behind if before.behind is not None and before.behind <= resumed_from else None
        self.told = replace(self.told, forecasts=kept, behind=behind)

    def round_finished(self, report: RoundReport) -> None:
        value = getattr(report, self._rule.metric)
        if value is None or self._basis is None:
            return
        self._curve[report.round] = value
        newest = self._basis.forecast(self._curve)
        if newest is None:
            return
        told = replace(self.told, forecasts=(*self.told.forecasts, newest))
        hopeless = told.bar is not None and told.bar.is_out_of_reach(newest)
        if hopeless and told.behind is None:
            told = replace(told, behind=newest.round)
        self.told = replace(told, stopped=hopeless and self._rule.stop)
        write_json_atomically(
            self._folder / FORECAST, TypeAdapter(Forecasts).dump_python(self.told, mode="json")
        )
        if self.told.stopped:
            raise KeyboardInterrupt  # after any other exception of an observer, the run goes on
