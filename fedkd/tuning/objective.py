"""The objective of a search: accuracy on held-out samples, by round and at the end of a trial."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedkd.benchmark import COMPARED_METRICS
from fedkd.errors import UserError, did_you_mean
from fedkd.report import CONTINUAL_METRICS
from fedkd.scenario import Scenario, check_metric_name, evaluation_protocols
from fedkd.tracking import RoundReport, TaskMatrix, make_task_matrices

PREFIX = "validation/"
_SPLITS = ("local", "global")
ACCURACIES = tuple(f"{name}_{split}" for split in _SPLITS for name in ("accuracy", "accuracy_before_fusion"))
AVERAGE = "average_accuracy_"
PROTOCOLS = ("task_incremental", "domain_incremental", "class_incremental")
OBJECTIVES = tuple(PREFIX + name for name in (*ACCURACIES, *(AVERAGE + protocol for protocol in PROTOCOLS)))
DEFAULT: str = OBJECTIVES[0]


def check_metric(name: str) -> None:
    """Refuse a metric that cannot be an objective."""
    if name in OBJECTIVES:
        return
    check_metric_name(name, "metric")
    told = f"no metric '{name}'; {did_you_mean(name, OBJECTIVES)}"
    if PREFIX + name in OBJECTIVES:
        told = f"'{name}' is measured on test samples, which a search must not use"
        told += f"; use '{PREFIX}{name}'"
    elif name.removeprefix(PREFIX) in (*COMPARED_METRICS, *CONTINUAL_METRICS):
        told = f"must be an accuracy on held-out samples; allowed: {', '.join(OBJECTIVES)}"
    raise UserError(told, key="metric")


def check_metric_of(name: str, scenario: Scenario) -> None:
    """Refuse a metric that the scenario's runs do not have."""
    if scenario.data.is_regression:
        told = f"'{name}' is an accuracy, which runs with data.task = 'regression' lack; use a bench"
        raise UserError(told, key="metric")
    protocol = name.removeprefix(PREFIX).removeprefix(AVERAGE)
    if protocol not in PROTOCOLS:
        return
    if scenario.continual is None:
        raise UserError(f"'{name}' needs a stream of tasks, but the scenario has none", key="metric")
    tested = (
        evaluation_protocols(scenario)
        if scenario.continual.evaluate_without_task
        else evaluation_protocols(scenario)[:1]
    )
    if protocol not in tested:
        told = ", ".join(f"{PREFIX}{AVERAGE}{known}" for known in tested)
        raise UserError(f"'{name}' is not measured in this scenario; allowed: {told}", key="metric")


def final_value(name: str, summary: Mapping[str, Any]) -> float | None:
    """Return the objective of a run, the mean over clients; None: no client was tested."""
    key = name.removeprefix(PREFIX)
    tables = summary.get("continual") if key.startswith(AVERAGE) else summary.get("final")
    found = (tables or {}).get(key)
    return None if found is None else float(found["mean"])


class Curve:
    """The objective of a run by round."""

    def __init__(self, name: str, scenario: Scenario) -> None:
        self._key = name.removeprefix(PREFIX)
        protocol = self._key.removeprefix(AVERAGE)
        found = make_task_matrices(scenario) if self._key.startswith(AVERAGE) else []
        self._matrix: TaskMatrix | None = next((m for m in found if m.protocol == protocol), None)
        self.values: dict[int, float] = {}

    def recall(self, rows: Sequence[Mapping[str, Any]], until: int) -> None:
        """Read the recorded rows up to a round, before the run is resumed."""
        self.values.clear()
        if self._matrix is not None:
            self._matrix.recall([row for row in rows if row["round"] <= until])
        metric, _, split = self._key.rpartition("_")
        for row in rows:
            told = (row["metric"], row["split"], row["client"]) == (metric, split, None)
            if told and 0 < row["round"] <= until and row["value"] is not None:
                self.values[row["round"]] = row["value"]

    def add(self, report: RoundReport) -> float | None:
        """Add a round; return its value; None: it was not evaluated."""
        if self._key.startswith(AVERAGE):
            known = self._matrix is not None and self._matrix.add(report)
            value = self._matrix.so_far().get("average_accuracy") if known and self._matrix else None
        else:
            value = getattr(report, self._key)
        if value is not None:
            self.values[report.round] = float(value)
        return value
