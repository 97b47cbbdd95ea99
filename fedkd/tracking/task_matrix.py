"""The accuracy matrix of a run over a stream of tasks."""

from collections.abc import Iterable, Mapping
from math import isnan, nan
from typing import Any

import numpy as np

from fedkd.continual import average_accuracy, bwt
from fedkd.plan import build_schedule, models_after_fusion
from fedkd.scenario import Protocol, Scenario, accuracy_name, evaluation_protocols, main_protocol, task_count
from fedkd.tracking.events import RoundReport


class TaskMatrix:
    """The federation's mean accuracy on every task after every task, on common test sets.

    The row of the present task is from its last evaluated round. The default protocol suits the head.
    """

    def __init__(self, scenario: Scenario, protocol: Protocol | None = None) -> None:
        self._schedule = build_schedule(scenario)
        rule = self._schedule.participation
        self._may_miss = rule.dropout > 0 or rule.clients_per_round is not None
        self._models = models_after_fusion(scenario, self._schedule)
        self.tasks = task_count(scenario)
        self.protocol = protocol or main_protocol(scenario)
        self._rows: dict[int, dict[int, float]] = {}
        self._missed: dict[int, bool] = {}

    def recall(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add the rows of `metrics.jsonl` from before the run was resumed, in order."""
        metric = accuracy_name(self.protocol)
        for row in rows:
            wanted = (row["metric"], row["split"], row["client"]) == (metric, "global", None)
            if wanted and row["round"] > 0 and row["value"] is not None:
                learned = self._schedule.task(0, row["round"])
                assert learned is not None
                self._rows.setdefault(learned, {})[row["task"]] = row["value"]

    def add(self, report: RoundReport) -> bool:
        """Add a round; return whether it was evaluated."""
        metric = accuracy_name(self.protocol)
        keys = {task: f"{metric}/global/{task}" for task in range(self.tasks)}
        measured = {task: report.metrics[key] for task, key in keys.items() if key in report.metrics}
        if not measured or report.task is None:
            return False
        self._rows[report.task] = measured
        return True

    def rows(self) -> dict[int, list[float | None]]:
        """Return the accuracies on all T tasks, by begun task; None where not measured."""
        return {
            learned: [accuracies.get(task) for task in range(self.tasks)]
            for learned, accuracies in sorted(self._rows.copy().items())
        }

    def so_far(self) -> dict[str, float]:
        """Return `average_accuracy` and, from two tasks on, `bwt` of the tasks begun so far.

        `bwt` is omitted if a client missed a task: it needs every task of every client.
        """
        rows = list(self.rows().values())
        if not rows:
            return {}
        tasks = len(rows)
        R = np.array([[np.nan if cell is None else cell for cell in row[:tasks]] for row in rows])
        missed = any(self._missed_by_some(task) for task in self._rows)
        found = {"average_accuracy": average_accuracy(R), "bwt": nan if missed else bwt(R)}
        return {name: value for name, value in found.items() if not isnan(value)}

    def _missed_by_some(self, task: int) -> bool:
        """Return whether some model misses a task, as no client with it takes part."""
        if self._may_miss and task not in self._missed:
            rounds = range(1, self._schedule.rounds + 1)
            of_task = [round for round in rounds if self._schedule.task(0, round) == task]
            there = {self._models[n] for round in of_task for n in self._schedule.participants(round)}
            self._missed[task] = len(there) < len(set(self._models))
        return self._missed.get(task, False)


def main_matrix(scenario: Scenario) -> TaskMatrix | None:
    """Return an empty matrix of the scenario's main protocol, if it has any."""
    return next((m for m in make_task_matrices(scenario) if m.protocol == main_protocol(scenario)), None)


def make_task_matrices(scenario: Scenario) -> list[TaskMatrix]:
    """Return an empty matrix per protocol; none without a stream in lockstep."""
    if scenario.continual is None or not build_schedule(scenario).in_step:
        return []
    return [TaskMatrix(scenario, protocol) for protocol in evaluation_protocols(scenario)]
