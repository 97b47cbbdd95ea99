"""Whether what a scenario says of orders, clocks and absences fits together."""

from __future__ import annotations

from fedkd.errors import UserError
from fedkd.plan.schedule import Schedule
from fedkd.scenario.schema import MOST_ROUNDS, MOST_TASKS, Population, Scenario, TaskStream
from fedkd.scenario.stream import task_count


def check_courses(scenario: Scenario) -> None:
    """Check the keys that decide when a client learns what against each other."""
    if scenario.continual is None:
        return
    tasks, key = scenario.continual.tasks, "continual.tasks"
    count = task_count(scenario)
    if (tasks.tasks_per_client or 0) > count:
        raise UserError(
            f"must be ≤ {count}, the tasks there are, got {tasks.tasks_per_client}",
            key=f"{key}.tasks_per_client",
        )
    if (tasks.groups or 0) > scenario.data.clients:
        raise UserError(
            f"must be ≤ data.clients ({scenario.data.clients}), got {tasks.groups}", key=f"{key}.groups"
        )
    if tasks.pace is not None and (len(tasks.pace) != 2 or tasks.pace[0] > tasks.pace[1]):
        raise UserError(
            f"must be the rounds a task of the fastest and of the slowest, e.g. [1, 3], got {tasks.pace}",
            key=f"{key}.pace",
        )
    lessons, each = count * tasks.visits, scenario.continual.rounds_per_task
    if lessons > MOST_TASKS:
        raise UserError(
            f"{count} tasks × {tasks.visits} visits are more than {MOST_TASKS} tasks", key=f"{key}.visits"
        )
    if lessons * each > MOST_ROUNDS:
        raise UserError(
            f"{lessons} tasks × {each} rounds_per_task are more than {MOST_ROUNDS} rounds",
            key="continual.rounds_per_task",
        )
    _check_file(tasks, scenario.population)


def _check_file(tasks: TaskStream, population: Population) -> None:
    key = "continual.tasks"
    if tasks.clock == "file" and tasks.order != "file":
        raise UserError(
            f"must be 'file' as the clock is: the file says both, got '{tasks.order}'", key=f"{key}.order"
        )
    reads = tasks.order == "file"
    if reads and tasks.schedule is None:
        raise UserError("order 'file' needs the path of a JSON file with the schedule", key=f"{key}.schedule")
    if tasks.clock == "file" and population != Population():
        changed = next(iter(population.model_dump(exclude_defaults=True)))
        raise UserError(
            "not allowed with clock 'file', which says who is there when", key=f"population.{changed}"
        )


def check_orthogonal(scenario: Scenario, schedule: Schedule) -> None:
    """Check that an average that is to keep out of old tasks is one, and that there are old tasks for all."""
    key, fusion = "fusion.orthogonal", scenario.fusion
    if fusion.orthogonal is None:
        return
    if not fusion.from_flower:
        raise UserError(
            f"only Flower's strategies make one average of all clients that can be held back, such as"
            f" 'flwr:FedAvg'; strategy is '{fusion.strategy}'",
            key=key,
        )
    if scenario.continual is None:
        raise UserError("needs a stream of tasks, which are not to be forgotten: [continual]", key=key)
    if not schedule.in_step:
        raise UserError(
            "needs all clients at the same task: what the average must not change any more is what the old"
            " tasks of all of them have used, and here some are still at what others have left; use"
            " order = 'same' and clock = 'lockstep', with nobody late, on a break or leaving",
            key=key,
        )
