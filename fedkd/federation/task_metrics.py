"""Names of what a client measures on the tasks of a stream, in replies and in `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from fedkd.scenario.schema import Scenario

Protocol = Literal["task_incremental", "domain_incremental", "class_incremental"]
"""How a model is tested: with the task given, or without it, among the task's own or among all classes."""

TASK_GIVEN: Protocol = "task_incremental"
FORGETTING = ("spatial_forgetting", "temporal_forgetting")


class TaskMetric(NamedTuple):
    """One figure about one task: a row of `metrics.jsonl`."""

    metric: str
    split: str
    task: int

    @property
    def key(self) -> str:
        """Its name in a reply."""
        return f"{self.metric}/{self.split}/{self.task}"

    @staticmethod
    def from_key(key: str) -> TaskMetric:
        """Return the figure that a key of a reply names."""
        metric, split, task = key.rsplit("/", 2)
        return TaskMetric(metric, split, int(task))


def is_task_metric(key: str) -> bool:
    """Return whether a key of a reply names a figure about a task."""
    return key.count("/") >= 2


def protocols(scenario: Scenario) -> tuple[Protocol, Protocol]:
    """Return how a stream's models are tested: with the task given, and without."""
    assert scenario.continual is not None
    shared = scenario.continual.head == "domain"
    return TASK_GIVEN, "domain_incremental" if shared else "class_incremental"


def main_protocol(scenario: Scenario) -> Protocol:
    """Return the test that the scenario's head is made for, whose mean over tasks is its `accuracy`."""
    assert scenario.continual is not None
    given, unknown = protocols(scenario)
    return given if scenario.continual.head == "task" else unknown


def accuracy_name(protocol: Protocol) -> str:
    """Return the metric's name: ``accuracy_task_incremental``."""
    return f"accuracy_{protocol}"


def all_task_metrics(scenario: Scenario, tasks: int) -> Iterator[TaskMetric]:
    """Yield every figure that a client of a stream reports, measured or not."""
    names = [*map(accuracy_name, protocols(scenario)), *FORGETTING]
    yield from (
        TaskMetric(name, split, task)
        for task in range(tasks)
        for split in ("local", "global")
        for name in names
    )
