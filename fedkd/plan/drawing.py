"""From a scenario to its schedule: drawn from the seed, or read from a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedkd.errors import UserError
from fedkd.plan.courses import draw_courses
from fedkd.plan.named_file import read_named
from fedkd.plan.schedule import Course, Participation, Schedule
from fedkd.scenario.schema import MOST_ROUNDS, Scenario
from fedkd.scenario.stream import task_count

KEY = "continual.tasks.schedule"


def draw_schedule(scenario: Scenario) -> Schedule:
    """Return the schedule of a scenario whose number of tasks is known.

    Its rounds are those of the scenario where there is no stream, else those that the last client takes.

    Raises:
        UserError: The file it is read from is missing or does not fit, or it takes more rounds than can be.
    """
    tasks = None if scenario.continual is None else scenario.continual.tasks
    from_file = None
    if tasks is not None and "file" in (tasks.order, tasks.clock):
        search = map(Path, scenario.plugin_path)
        from_file = read_schedule(tasks.schedule or "", scenario.data.clients, task_count(scenario), search)
    courses = draw_courses(scenario, from_file)
    distinct: dict[Course, int] = {}
    course_of = tuple(distinct.setdefault(course, len(distinct)) for course in courses)
    last = max(course[-1].last for course in distinct)
    if last > MOST_ROUNDS:
        raise UserError(
            f"the tasks take more than {MOST_ROUNDS} rounds; take fewer tasks or rounds for each",
            key=KEY if from_file is not None else "continual.rounds_per_task",
        )
    return Schedule(
        clients=scenario.data.clients,
        rounds=scenario.rounds if tasks is None else last,
        courses=tuple(distinct),
        participation=Participation(scenario.seed, scenario.clients_per_round, scenario.faults.dropout),
        course_of=() if len(distinct) == 1 else course_of,
    )


def read_schedule(name: str, clients: int, tasks: int, search: Iterable[Path] = ()) -> Schedule:
    """Read a schedule that a run left or somebody wrote.

    Args:
        name: The JSON file.
        clients: Number of clients N.
        tasks: Number of tasks T.
        search: The scenario's folders, for a relative path; then the working folder.

    Raises:
        UserError: No such file, or it is no schedule of so many clients and tasks.
    """
    schedule, path = read_named(name, clients, search, Schedule.from_json, key=KEY)
    for client in range(clients):
        for span in schedule.course(client):
            if span.task is None or span.task >= tasks:
                named = "no task" if span.task is None else f"task {span.task}"
                raise UserError(
                    f"{path} has client {client} at {named} in round {span.first}; tasks are 0..{tasks - 1}",
                    key=KEY,
                )
    return schedule
