"""The trials of a search: values, runs and outcomes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from fedkd.benchmark import (
    Basis,
    Cell,
    CellOutcome,
    cell_tables,
    flatten,
    make_cell,
    make_level,
    name_cell_in_error,
    read_summary,
    run_cell,
    value_at,
)
from fedkd.errors import UserError
from fedkd.plan import parse_scenario
from fedkd.scenario import Scenario, dotted_key, scenario_from_json
from fedkd.storage import InvalidJson, parse_json, write_json_atomically
from fedkd.tracking import RoundReport, RunObserver, format_percent, read_metrics
from fedkd.tuning.objective import Curve, check_metric_of, final_value
from fedkd.tuning.schema import Search
from fedkd.tuning.space import Dimension

TRIAL = "trial.json"  # in a run folder: how the run ended


@dataclass(frozen=True, eq=False)
class TrialRun(Cell):
    """One run of a trial, 0-based; two trials may try the same values, in one folder."""

    trial: int = 0

    @property
    def label(self) -> str:
        return f"trial {self.trial}: {super().label}"


@dataclass(frozen=True)
class Trial:
    """A trial that has ended."""

    number: int
    values: Mapping[str, Any]
    status: str  # done, pruned (behind the others) or diverged
    value: float | None  # mean over seeds at the end, or where its first run was stopped; None: diverged
    rounds: int
    curve: Mapping[int, float]  # the same by round
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True)
class TrialRecord:
    """The outcome of one run of a trial."""

    status: str  # done, pruned or diverged
    value: float | None  # None: diverged
    curve: Mapping[int, float]  # by round
    error: str = ""


def runs_of(search: Search, number: int, values: Mapping[str, Any]) -> list[TrialRun]:
    """Return the runs of a trial, one for each seed."""
    levels = {key: make_level(key, value) for key, value in values.items()}
    found = []
    for seed in search.seeds:
        try:
            cell = make_cell(search.bench, levels, seed)
        except UserError as error:
            told = error.message.replace("cell '", f"trial {number} '", 1)
            raise UserError(told, file=error.file) from None
        try:
            check_metric_of(search.spec.metric, cell.scenario)
        except UserError as error:
            raise error.at(file=search.bench.file) from None
        found.append(TrialRun(**vars(cell), trial=number))
    return found


def check_space(search: Search) -> None:
    """Resolve scenarios with every end of a range and every choice, alone and in pairs with choices."""
    for place, dimension in enumerate(search.space):
        for value in dimension.tried:
            _try(search, dimension, {dimension.key: value})
        for other in search.space[:place]:
            if not dimension.choices and not other.choices:
                continue  # the ends of ranges seldom depend on each other
            for value, beside in product(dimension.tried, other.tried):
                _try(search, dimension, {other.key: beside, dimension.key: value})


def _try(search: Search, dimension: Dimension, values: Mapping[str, Any]) -> None:
    try:
        tables, layers = cell_tables(search.bench, {"search": flatten(values)}, search.seeds[0])
        parse_scenario(tables, folder=search.bench.folder, layers=layers)
    except UserError as error:
        key = dimension.key.removesuffix("!")
        told = error.message if error.key in (None, key) else f"{error.key}: {error.message}"
        others = [f"{name} = {word}" for name, word in value_labels(values).items() if name != dimension.key]
        beside = f" (with {others[0]}; list valid combinations as whole tables)" if others else ""
        where = dotted_key(("search", *key.split(".")))
        raise UserError(told + beside, key=where, file=search.bench.file) from None


def base_values(search: Search) -> dict[str, Any] | None:
    """Return the base's own values at the searched keys; None: one is outside the search space."""
    try:
        tables = make_cell(search.bench, {}, search.seeds[0]).scenario.model_dump(mode="json")
    except UserError as error:
        raise name_cell_in_error(error, "base", search.bench.file) if error.key else error from None
    found = {}
    for dimension in search.space:
        value = value_at(tables, dimension.key, missing=...)
        if dimension.whole and isinstance(value, float) and value.is_integer():
            value = int(value)  # the scenario's key takes floats, the range has whole numbers
        if not dimension.holds(value):
            return None
        found[dimension.key] = value
    return found


def make_trial(number: int, values: Mapping[str, Any], runs: Sequence[tuple[Path, TrialRecord]]) -> Trial:
    """Return a trial whose runs have ended: done if all are, diverged if one did, else pruned."""
    records = [record for _, record in runs]
    shared = sorted(set.intersection(*(set(record.curve) for record in records)))
    curve = {round: fmean(record.curve[round] for record in records) for round in shared}
    states = {record.status for record in records}
    status = next((status for status in ("diverged", "pruned") if status in states), "done")
    value = curve[shared[-1]] if status == "pruned" and shared else None
    if status == "done":
        value = fmean(record.value for record in records if record.value is not None)
    rounds = min((max(record.curve, default=0) for record in records), default=0)
    return Trial(number, dict(values), status, value, rounds, curve, tuple(path for path, _ in runs))


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial with the highest value, of equal ones the first; None: none is done."""
    done = [trial for trial in trials if trial.status == "done" and trial.value is not None]
    return max(done, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


def value_labels(values: Mapping[str, Any]) -> dict[str, str]:
    """Return values in words of one line, by their keys."""
    return {key: make_level(key, value).label for key, value in values.items()}


def in_words(values: Mapping[str, Any], equals: str = "=") -> str:
    """Return values as one line."""
    return ", ".join(f"{key}{equals}{word}" for key, word in value_labels(values).items())


@dataclass(frozen=True)
class Rule:
    """The rule that stops runs behind the others."""

    metric: str
    prunes: bool
    startup: int  # runs that have to be known
    warmup: int  # rounds in which no run is stopped
    known: Mapping[int, tuple[Mapping[int, float], ...]]  # curves of earlier batches, by seed
    basis: Basis | None = None  # forecasts stop runs; None: the median does


def read_record(folder: Path) -> TrialRecord | None:
    """Return a run's outcome; None: unfinished, or its files are damaged."""
    try:
        found: Any = parse_json((folder / TRIAL).read_bytes())
        curve = {int(round): float(value) for round, value in found["curve"]}
        record = TrialRecord(str(found["status"]), found["value"], curve, str(found["error"]))
    except (OSError, InvalidJson, KeyError, TypeError, ValueError):
        return None
    value, status = record.value, record.status
    fits = value is None or (isinstance(value, float) and isfinite(value))
    if status == "done":
        fits = fits and value is not None and read_summary(folder) is not None
    return record if fits and status in ("done", "pruned", "diverged") else None


def run_trial(rule: Rule, scenario_json: str, folder: str, gpus: float | None = None) -> CellOutcome:
    """Run or resume a trial with one seed, and write its outcome into its folder."""
    watcher = _Follower(rule, scenario_from_json(scenario_json))
    outcome = run_cell(scenario_json, folder, gpus, observers=[watcher])
    curve = watcher.curve.values
    if outcome.status == "done":
        summary = read_summary(Path(folder))
        value = None if summary is None else final_value(rule.metric, summary)
        if value is None:
            return replace(outcome, status="failed", error=f"no client could be tested for {rule.metric}")
        write_record(folder, TrialRecord("done", value, curve))
        return replace(outcome, told=format_percent(value))
    if outcome.status == "interrupted" and watcher.stopped is not None:
        reached = curve[watcher.stopped]
        write_record(folder, TrialRecord("pruned", reached, curve))
        told = f"{format_percent(reached)} after round {watcher.stopped}: behind"
        return replace(outcome, status="pruned", told=told)
    if outcome.status == "failed" and outcome.diverged:
        write_record(folder, TrialRecord("diverged", None, curve, outcome.error))
    return outcome


def write_record(folder: str, record: TrialRecord) -> None:
    """Write a run's outcome into its folder."""
    write_json_atomically(Path(folder) / TRIAL, vars(record) | {"curve": sorted(record.curve.items())})


class _Follower(RunObserver):
    """Stops a run by Optuna's `MedianPruner`, its best value below the others' median, or by its forecast."""

    def __init__(self, rule: Rule, scenario: Scenario) -> None:
        self.curve = Curve(rule.metric, scenario)
        self.stopped: int | None = None
        self._rule = rule
        self._others = rule.known.get(scenario.seed, ())
        self._trial: Any = None
        self._bar: float | None = None  # best final value of the seed; None: forecasts stop no run

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        if resumed_from:
            try:
                self.curve.recall(read_metrics(folder), resumed_from)
            except UserError:  # resuming the run reports it
                return
        if not self._rule.prunes or len(self._others) < self._rule.startup:
            return
        if self._rule.basis is not None:
            self._bar = max((curve[max(curve)] for curve in self._others if curve), default=None)
            return
        import optuna

        rule, warmup = self._rule, self._rule.warmup + 1
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=rule.startup, n_warmup_steps=warmup)
        study = optuna.create_study(direction="maximize", pruner=pruner)
        for curve in self._others:
            last = curve[max(curve)] if curve else 0.0
            study.add_trial(optuna.trial.create_trial(value=last, intermediate_values=dict(curve)))
        self._trial = study.ask()
        for round, value in sorted(self.curve.values.items()):
            self._trial.report(value, round)

    def round_finished(self, report: RoundReport) -> None:
        value = self.curve.add(report)
        if value is not None and report.round < report.rounds and self._is_behind(value, report.round):
            self.stopped = report.round
            raise KeyboardInterrupt  # after any other exception of an observer, the run goes on

    def _is_behind(self, value: float, round: int) -> bool:
        if self._bar is not None and self._rule.basis is not None:
            told = self._rule.basis.forecast(self.curve.values)
            if told is None or told.high is None or round <= self._rule.warmup:
                return False
            return told.high < self._bar
        if self._trial is None:
            return False
        self._trial.report(value, round)
        return bool(self._trial.should_prune())
