"""When a federation learns which task of a stream, and how it is tested on them."""

from __future__ import annotations

from typing import Literal

from fedkd.errors import UserError
from fedkd.scenario.schema import Scenario

Protocol = Literal["task_incremental", "domain_incremental", "class_incremental"]
"""How a model is tested: with the task given, or without it, among the task's own or among all classes."""

TASK_GIVEN: Protocol = "task_incremental"


def resolve_stream(scenario: Scenario) -> Scenario:
    """Return the scenario with the number of tasks, the head and the rounds of its stream filled in.

    Raises:
        UserError: The rounds are not those that the tasks take.
    """
    # Numbers and words only: no array is made to find out how many tasks there are.
    from fedkd.data.stream_plan import head_of, planned_count

    continual = scenario.continual
    if continual is None:
        return scenario
    count = planned_count(continual.tasks)
    if count is None:
        raise UserError(
            "must say how many windows of classes there are, for 'overlapping' tasks",
            key="continual.tasks.count",
        )
    rounds = count * continual.rounds_per_task
    if "rounds" in scenario.model_fields_set and scenario.rounds != rounds:
        raise UserError(
            f"must be {rounds}, the {count} tasks × {continual.rounds_per_task} rounds_per_task, or left out,"
            f" got {scenario.rounds}",
            key="rounds",
        )
    tables = scenario.model_dump()
    tables["rounds"] = rounds
    tables["continual"]["head"] = head_of(continual)
    tables["continual"]["tasks"]["count"] = count
    return Scenario.model_validate(tables)


def task_count(scenario: Scenario) -> int:
    """Return the number of tasks T, however few rounds are run; 1 without a stream."""
    if scenario.continual is None:
        return 1
    return scenario.continual.tasks.count or scenario.rounds // scenario.continual.rounds_per_task


def task_of(scenario: Scenario, round: int) -> int | None:
    """Return the task, 0-based, that a round of training belongs to; None without a stream.

    Round 0, before any training, counts as the first task's.
    """
    if scenario.continual is None:
        return None
    return max(round - 1, 0) // scenario.continual.rounds_per_task


def begins_task(scenario: Scenario, round: int) -> bool:
    """Return whether a new task begins with this round."""
    return scenario.continual is not None and (round - 1) % scenario.continual.rounds_per_task == 0


def ends_task(scenario: Scenario, round: int) -> bool:
    """Return whether a task is over with this round."""
    return scenario.continual is not None and round > 0 and round % scenario.continual.rounds_per_task == 0


def evaluates(scenario: Scenario, round: int) -> bool:
    """Return whether a round is evaluated: every so many, the last, and every task's last."""
    last = round == scenario.rounds
    return round % scenario.evaluate_every == 0 or last or ends_task(scenario, round)


def protocols(scenario: Scenario) -> tuple[Protocol, Protocol]:
    """Return how a stream's models are tested: with the task given, and without."""
    assert scenario.continual is not None
    shared = scenario.continual.head == "domain"
    return TASK_GIVEN, "domain_incremental" if shared else "class_incremental"


def main_protocol(scenario: Scenario) -> Protocol:
    """Return the test that the scenario's head is made for, whose mean over tasks is its `accuracy`.

    Where there is no test without the task, it is the one with.
    """
    assert scenario.continual is not None
    given, unknown = protocols(scenario)
    knows = scenario.continual.head == "task" or not scenario.continual.evaluate_without_task
    return given if knows else unknown


def accuracy_name(protocol: Protocol) -> str:
    """Return the metric's name: ``accuracy_task_incremental``."""
    return f"accuracy_{protocol}"
