"""One run of a trial, wherever there is room for it: to its end, or until it is behind the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.benchmark.finished import read_summary
from fedkd.benchmark.worker import Outcome, run_cell
from fedkd.errors import UserError
from fedkd.json_text import NotJson, parse_json
from fedkd.scenario.load import scenario_from_json
from fedkd.tracking.atomic import write_json_atomically
from fedkd.tracking.events import RoundReport, RunObserver
from fedkd.tracking.recorder import read_metrics
from fedkd.tracking.wording import percent
from fedkd.tuning.objective import Curve, final_value

if TYPE_CHECKING:
    from fedkd.scenario.schema import Scenario

TRIAL = "trial.json"


@dataclass(frozen=True)
class Rule:
    """What decides about a trial's runs.

    Attributes:
        metric: What is looked for.
        prunes: Whether a run is stopped where it is behind.
        startup: Runs that have to be known before one is stopped.
        warmup: Rounds in which none is.
        known: Curves of runs that were finished before this batch of trials began, by seed.
    """

    metric: str
    prunes: bool
    startup: int
    warmup: int
    known: Mapping[int, tuple[Mapping[int, float], ...]]


@dataclass(frozen=True)
class TrialRecord:
    """How one run of a trial ended, as its folder keeps it.

    Attributes:
        status: `done`, `pruned`, or `diverged`.
        value: What it reached, None unless it is done; the last point of the curve where it was stopped.
        curve: Round to what was reached by it.
        error: One line.
    """

    status: str
    value: float | None
    curve: Mapping[int, float]
    error: str = ""


def read_record(folder: Path) -> TrialRecord | None:
    """Return how a run ended; None: it has not, or what it left is damaged."""
    try:
        found: Any = parse_json((folder / TRIAL).read_bytes())
        curve = {int(round): float(value) for round, value in found["curve"]}
        record = TrialRecord(str(found["status"]), found["value"], curve, str(found["error"]))
    except (OSError, NotJson, KeyError, TypeError, ValueError):
        return None
    if record.status not in ("done", "pruned", "diverged"):
        return None
    if record.value is not None and not (isinstance(record.value, float) and isfinite(record.value)):
        return None
    if record.status == "done" and (record.value is None or read_summary(folder) is None):
        return None
    return record


def run_trial(rule: Rule, scenario_json: str, folder: str, gpus: float | None = None) -> Outcome:
    """Run a trial with one seed, or go on with it where it was interrupted (see `run_cell`).

    Args:
        rule: What decides about it.
        scenario_json: The resolved scenario.
        folder: The run folder, which keeps how it ended.
        gpus: GPUs that are reserved for it; absent: what the scenario says.
    """
    watcher = _Follower(rule, scenario_from_json(scenario_json))
    outcome = run_cell(scenario_json, folder, gpus, observers=[watcher])
    curve = watcher.curve.values
    if outcome.status == "done":
        summary = read_summary(Path(folder))
        value = None if summary is None else final_value(rule.metric, summary)
        if value is None:
            return replace(outcome, status="failed", error=f"no client could be tested for {rule.metric}")
        _keep(folder, TrialRecord("done", value, curve))
        return replace(outcome, told=percent(value))
    if outcome.status == "interrupted" and watcher.stopped is not None:
        reached = curve[watcher.stopped]
        _keep(folder, TrialRecord("pruned", reached, curve))
        return replace(
            outcome, status="pruned", told=f"{percent(reached)} after round {watcher.stopped}: behind"
        )
    if outcome.status == "failed" and outcome.diverged:
        _keep(folder, TrialRecord("diverged", None, curve, outcome.error))
    return outcome


def _keep(folder: str, record: TrialRecord) -> None:
    told = {
        "status": record.status,
        "value": record.value,
        "curve": sorted(record.curve.items()),
        "error": record.error,
    }
    write_json_atomically(Path(folder) / TRIAL, told)


class _Follower(RunObserver):
    """Follows a run's curve, and stops it where the median of others is above.

    That is Optuna's `MedianPruner`: the best that the run has reached so far, against what the others had
    reached by the same round.

    Args:
        rule: What decides.
        scenario: What is run.
    """

    def __init__(self, rule: Rule, scenario: Scenario) -> None:
        self.curve = Curve(rule.metric, scenario)
        self.stopped: int | None = None
        self._rule = rule
        self._others = rule.known.get(scenario.seed, ())
        self._trial: Any = None

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        if resumed_from:
            try:
                self.curve.recall(read_metrics(folder), resumed_from)
            except UserError:  # whoever resumes the run says what is wrong with it
                return
        if not self._rule.prunes or len(self._others) < self._rule.startup:
            return
        self._trial = _pruned_by_median(self._others, self._rule)
        for round, value in sorted(self.curve.values.items()):
            self._trial.report(value, round)

    def round_finished(self, report: RoundReport) -> None:
        value = self.curve.add(report)
        if value is None or self._trial is None or report.round == report.rounds:
            return
        self._trial.report(value, report.round)
        if self._trial.should_prune():
            self.stopped = report.round
            raise KeyboardInterrupt  # whatever else an observer raises, the run goes on


def _pruned_by_median(others: tuple[Mapping[int, float], ...], rule: Rule) -> Any:
    """Return a trial of Optuna's that knows the others."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=rule.startup, n_warmup_steps=rule.warmup + 1)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for curve in others:
        last = curve[max(curve)] if curve else 0.0
        study.add_trial(optuna.trial.create_trial(value=last, intermediate_values=dict(curve)))
    return study.ask()
