"""Number of tasks, head and test protocols of a scenario's stream."""

from typing import Literal

from fedkd.errors import UserError
from fedkd.scenario.continual import Continual, TaskStream
from fedkd.scenario.schema import Scenario

HeadKind = Literal["task", "domain", "class"]
Protocol = Literal["task_incremental", "domain_incremental", "class_incremental"]
"""Test protocol: with the task given, or without it, among shared outputs or all classes."""

TASK_GIVEN: Protocol = "task_incremental"
DEFAULT_TASK_COUNT = 5
TASK_INFERENCE_RATE = "task_inference_rate"
"""Metric: share of a task's samples whose task the learner infers correctly."""


def resolve_head(continual: Continual) -> HeadKind:
    """Return the scenario's head, else the default of its tasks' kind."""
    if continual.head is not None:
        return continual.head
    return "domain" if continual.tasks.kind in ("permuted", "rotated") else "task"


def planned_task_count(tasks: TaskStream) -> int | None:
    """Return the number of tasks; None for `overlapping` windows without a count."""
    if tasks.count is None and tasks.classes is not None:
        return len(tasks.classes)
    if tasks.count is not None or tasks.kind == "overlapping":
        return tasks.count
    return max(len(tasks.datasets), 1) if tasks.kind == "datasets" else DEFAULT_TASK_COUNT


def resolve_stream(scenario: Scenario) -> Scenario:
    """Return the scenario with its number of tasks and head filled in."""
    continual = scenario.continual
    if continual is None:
        return scenario
    count = planned_task_count(continual.tasks)
    if count is None:
        told = "missing; 'overlapping' tasks need a number of windows"
        raise UserError(told, key="continual.tasks.count")
    tasks = continual.tasks.model_copy(update={"count": count})
    resolved = continual.model_copy(update={"head": resolve_head(continual), "tasks": tasks})
    return scenario.model_copy(update={"continual": resolved})


def resolve_rounds(scenario: Scenario, rounds: int) -> Scenario:
    """Return the scenario with the rounds of its stream filled in."""
    if scenario.continual is None:
        return scenario
    if "rounds" in scenario.model_fields_set and scenario.rounds != rounds:
        tasks, length = task_count(scenario), scenario.continual.rounds_per_task
        reason = f"the {tasks} tasks × {length} rounds_per_task"
        if rounds != tasks * length:
            reason = "until the last client has finished its tasks"
        raise UserError(f"must be {rounds}, {reason}, or left out, got {scenario.rounds}", key="rounds")
    return scenario.model_copy(update={"rounds": rounds})


def task_count(scenario: Scenario) -> int:
    """Return the number of tasks T; 1 without a stream."""
    if scenario.continual is None:
        return 1
    return scenario.continual.tasks.count or scenario.rounds // scenario.continual.rounds_per_task


def evaluation_protocols(scenario: Scenario) -> tuple[Protocol, Protocol]:
    """Return the test protocols of a stream, with and without the task given."""
    assert scenario.continual is not None
    shared = scenario.continual.head == "domain"
    return TASK_GIVEN, "domain_incremental" if shared else "class_incremental"


def main_protocol(scenario: Scenario) -> Protocol:
    """Return the protocol of the head, whose accuracy is the metric `accuracy`."""
    assert scenario.continual is not None
    given, unknown = evaluation_protocols(scenario)
    knows = scenario.continual.head == "task" or not scenario.continual.evaluate_without_task
    return given if knows else unknown


def accuracy_name(protocol: Protocol) -> str:
    """Return the metric's name: ``accuracy_task_incremental``."""
    return f"accuracy_{protocol}"
