"""Cross-field validation of task orders, paces, absences and asynchronous rounds."""

from fedkd.errors import refuse_if
from fedkd.plan.schedule import Schedule
from fedkd.scenario import MAX_ROUNDS, MAX_TASKS, Population, Scenario, TaskStream, task_count


def check_courses(scenario: Scenario) -> None:
    """Raise a `UserError` for contradictory keys about the tasks of clients over time."""
    if scenario.continual is None:
        return
    tasks, key, clients = scenario.continual.tasks, "continual.tasks", scenario.data.clients
    count = task_count(scenario)
    told = f"must be ≤ {count}, the number of tasks, got {tasks.tasks_per_client}"
    refuse_if((tasks.tasks_per_client or 0) > count, told, f"{key}.tasks_per_client")
    told = f"must be ≤ data.clients ({clients}), got {tasks.groups}"
    refuse_if((tasks.groups or 0) > clients, told, f"{key}.groups")
    refuse_if(
        tasks.pace_range is not None
        and (len(tasks.pace_range) != 2 or tasks.pace_range[0] > tasks.pace_range[1]),
        f"must be the rounds per task of the fastest and the slowest, e.g. [1, 3], got {tasks.pace_range}",
        f"{key}.pace_range",
    )
    lessons, each = count * tasks.visits, scenario.continual.rounds_per_task
    told = f"{count} tasks × {tasks.visits} visits are more than {MAX_TASKS} tasks"
    refuse_if(lessons > MAX_TASKS, told, f"{key}.visits")
    told = f"{lessons} tasks × {each} rounds_per_task are more than {MAX_ROUNDS} rounds"
    refuse_if(lessons * each > MAX_ROUNDS, told, "continual.rounds_per_task")
    _check_file(tasks, scenario.population)


def _check_file(tasks: TaskStream, population: Population) -> None:
    key, by_file = "continual.tasks", tasks.pace == "file"
    told = f"must be 'file' with pace = 'file', got '{tasks.order}'"
    refuse_if(by_file and tasks.order != "file", told, f"{key}.order")
    told = "missing; order 'file' needs a JSON file with the schedule"
    refuse_if(tasks.order == "file" and tasks.schedule is None, told, f"{key}.schedule")
    changed = next(iter(population.model_dump(exclude_defaults=True)), None)
    told = "not allowed with pace 'file': the file has the absences of clients"
    refuse_if(by_file and changed, told, f"population.{changed}")


def check_orthogonal(scenario: Scenario, schedule: Schedule) -> None:
    """Raise a `UserError` for `fusion.orthogonal` without a Flower average or a stream in lockstep."""
    key, fusion = "fusion.orthogonal", scenario.fusion
    if fusion.orthogonal is None:
        return
    refuse_if(
        not fusion.from_flower,
        f"needs one of Flower's strategies, such as 'flwr:FedAvg', got '{fusion.strategy}'",
        key,
    )
    told = "needs a stream of tasks: [continual]"
    refuse_if(scenario.continual is None, told, key)
    refuse_if(
        not schedule.in_step,
        "needs all clients at the same task; use order = 'same' and pace = 'lockstep', without late, pausing"
        " or leaving clients",
        key,
    )


def check_asynchronous(scenario: Scenario) -> None:
    """Raise a `UserError` for asynchronous rounds with other keys about participation."""
    asynchronous, clients = scenario.asynchronous, scenario.data.clients
    if asynchronous is None:
        return
    working = asynchronous.concurrency or clients
    told = f"must be ≤ data.clients ({clients}), got {working}"
    refuse_if(working > clients, told, "asynchronous.concurrency")
    told = f"must be ≤ {working}, the number of clients that train at a time, got {asynchronous.buffer}"
    refuse_if(asynchronous.buffer > working, told, "asynchronous.buffer")
    mapped = scenario.measure is not None and scenario.measure.transferability is not None
    for key, is_set, reason in (
        ("continual", scenario.continual is not None, "tasks are counted in rounds of all clients"),
        ("clients_per_round", scenario.clients_per_round is not None, "use asynchronous.concurrency"),
        ("end_with", scenario.end_with != "fusion", "clients end at different times"),
        ("faults.dropout", scenario.faults.dropout > 0, "the server waits for no client"),
        ("faults.on_client_error", scenario.faults.on_client_error == "skip", "use 'fail' or 'retry'"),
        ("faults.on_bad_upload", scenario.faults.on_bad_upload == "drop", "use 'fail'"),
        ("population", scenario.population != Population(), "use asynchronous.concurrency"),
        ("topology.graph", scenario.topology.graph != "star", "it needs a server"),
        ("measure.transferability", mapped, "clients are never all between two rounds"),
        (
            "fusion.knowledge_cache",
            scenario.fusion.knowledge_cache is not None,
            "it already caches knowledge",
        ),
    ):
        refuse_if(is_set, f"not allowed in an asynchronous run: {reason}", key)
