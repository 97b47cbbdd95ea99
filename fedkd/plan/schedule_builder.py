"""Build a scenario's schedule: drawn, or read from a file.

A client's course has the order and length of its tasks, and its absences. Each client is drawn
independently. With `max_lag`, the times of all clients are then computed together, round by round.
"""

from collections.abc import Iterable, Sequence
from math import inf
from pathlib import Path

import numpy as np

from fedkd.errors import refuse_if
from fedkd.plan.client_roles import round_half_up
from fedkd.plan.schedule import Course, Participation, Schedule, Span
from fedkd.randomness import numpy_generator
from fedkd.scenario import MAX_ROUNDS, Continual, Population, Scenario, read_client_file, task_count

KEY = "continual.tasks.schedule"

Orders = Sequence[tuple[int, ...]]  # every client's tasks, from 0, in learning order


def build_schedule(scenario: Scenario) -> Schedule:
    """Return a scenario's schedule; a stream ends when its last client does."""
    tasks = None if scenario.continual is None else scenario.continual.tasks
    from_file = None
    if tasks is not None and "file" in (tasks.order, tasks.pace):
        search = map(Path, scenario.plugin_path)
        from_file = _read_schedule(tasks.schedule or "", scenario.data.clients, task_count(scenario), search)
    distinct: dict[Course, int] = {}
    courses = draw_courses(scenario, from_file)
    course_of = tuple(distinct.setdefault(course, len(distinct)) for course in courses)
    last = max(course[-1].last for course in distinct)
    told = f"the tasks take more than {MAX_ROUNDS} rounds; use fewer tasks or rounds per task"
    refuse_if(last > MAX_ROUNDS, told, KEY if from_file is not None else "continual.rounds_per_task")
    return Schedule(
        clients=scenario.data.clients,
        rounds=scenario.rounds if tasks is None else last,
        courses=tuple(distinct),
        participation=Participation(scenario.seed, scenario.clients_per_round, scenario.faults.dropout),
        course_of=() if len(distinct) == 1 else course_of,
    )


def _read_schedule(name: str, clients: int, tasks: int, search: Iterable[Path]) -> Schedule:
    schedule, path = read_client_file(name, clients, search, Schedule.from_json, key=KEY)
    for client in range(clients):
        for span in schedule.course(client):
            named = "no task" if span.task is None else f"task {span.task}"
            told = f"{path}: client {client} has {named} in round {span.first}; tasks are 0..{tasks - 1}"
            refuse_if(span.task is None or span.task >= tasks, told, KEY)
    return schedule


def draw_courses(scenario: Scenario, from_file: Schedule | None = None) -> tuple[Course, ...]:
    """Return all clients' courses; `from_file` is the content of the `schedule` file."""
    continual, population = scenario.continual, scenario.population
    clients, seed = scenario.data.clients, scenario.seed
    late, pauses = np.zeros(clients, dtype=int), _chosen(population.breaks, clients, seed, "breaks")
    for n in _chosen(population.late, clients, seed, "late"):
        late[n] = numpy_generator(seed, "late-by", client=n).integers(1, population.late_by, endpoint=True)
    same = continual is None or (continual.tasks.order, continual.tasks.pace) == ("same", "lockstep")
    if same and population == Population():
        return (_shared_course(scenario),) * clients
    if continual is None:
        courses = [_without_stream(scenario, n, int(late[n]), n in pauses) for n in range(clients)]
    elif continual.tasks.pace == "file":
        assert from_file is not None
        courses = [from_file.course(n) for n in range(clients)]
    else:
        orders = draw_orders(continual, clients, task_count(scenario), seed, from_file)
        lengths = draw_lengths(continual, orders, seed)
        breaks = {
            n: int(numpy_generator(seed, "break", client=n).integers(1, len(orders[n])))
            for n in pauses
            if len(orders[n]) > 1
        }
        spans = _settle(lengths, late, breaks, population.break_rounds, continual.tasks.max_lag or inf)
        courses = [
            tuple(Span(task, *span) for task, span in zip(order, own, strict=True))
            for order, own in zip(orders, spans, strict=True)
        ]
    for client in _chosen(population.leaving, clients, seed, "leaving"):
        courses[client] = _cut_short(courses[client], client, seed)
    return tuple(courses)


def _shared_course(scenario: Scenario) -> Course:
    if scenario.continual is None:
        return (Span(None, 1, scenario.rounds),)
    each = scenario.continual.rounds_per_task
    order = tuple(range(task_count(scenario))) * scenario.continual.tasks.visits
    return tuple(Span(task, place * each + 1, (place + 1) * each) for place, task in enumerate(order))


def draw_orders(
    continual: Continual, clients: int, count: int, seed: int, from_file: Schedule | None = None
) -> Orders:
    """Return every client's tasks in learning order.

    In an `overlapping` order the tasks lie on a circle, drawn once. Clients get evenly spaced windows of it,
    each in its own order. So some clients share many tasks, and some none.
    """
    tasks = continual.tasks
    if tasks.order == "file":
        assert from_file is not None
        return [tuple(span.task or 0 for span in from_file.course(n)) for n in range(clients)]
    if tasks.order == "same":
        return [tuple(range(count)) * tasks.visits] * clients
    windows: Sequence[Sequence[int]] = [range(count)] * clients
    if tasks.order == "overlapping":
        width = tasks.tasks_per_client or -(-count // 2)
        circle = numpy_generator(seed, "task-circle").permutation(count).tolist() * 2
        starts = [n * count // clients for n in range(clients)]
        windows = [circle[start : start + width] for start in starts]
    drawn = [
        numpy_generator(seed, "task-order", client=n).permutation(list(window)).tolist()
        for n, window in enumerate(windows)
    ]
    return [tuple(order) * tasks.visits for order in drawn]


def draw_lengths(continual: Continual, orders: Orders, seed: int) -> list[list[int]]:
    """Return the rounds of every client's tasks, without `max_lag`."""
    tasks, each, clients = continual.tasks, continual.rounds_per_task, len(orders)
    if tasks.pace == "poisson":
        return [
            (1 + numpy_generator(seed, "task-rounds", client=n).poisson(each - 1, len(order))).tolist()
            for n, order in enumerate(orders)
        ]
    pace_of = [each] * clients
    fastest, slowest = tasks.pace_range or (each, 3 * each)
    if tasks.pace == "groups":
        groups = tasks.groups or 2
        paces = np.rint(np.linspace(fastest, slowest, groups)).astype(int)
        group_of = numpy_generator(seed, "clock-groups").permutation(np.arange(clients) % groups)
        pace_of = paces[group_of].tolist()
    elif tasks.pace == "uniform":
        draws = (numpy_generator(seed, "pace", client=n) for n in range(clients))
        pace_of = [int(draw.integers(fastest, slowest, endpoint=True)) for draw in draws]
    return [[pace] * len(order) for pace, order in zip(pace_of, orders, strict=True)]


def _settle(
    lengths: Sequence[Sequence[int]],
    late: np.ndarray,
    breaks: dict[int, int],
    break_rounds: int,
    max_lag: float,
) -> list[list[tuple[int, int]]]:
    """Return the first and the last round of every client's tasks.

    A client stays with its task while the next one would be more than `max_lag` tasks ahead of the slowest.
    Only present clients count. `late` has the rounds before clients join, `[N]`. `breaks` has the index of
    the task before which a client pauses.
    """
    clients = len(lengths)
    count = np.array([len(own) for own in lengths])
    place = np.zeros(clients, dtype=int)
    began = late + 1
    due = began + [own[0] for own in lengths]
    spans: list[list[tuple[int, int]]] = [[] for _ in lengths]
    round, learning = 0, np.ones(clients, dtype=bool)
    while learning.any():
        # Skip to the end of the next task: waiting clients cannot continue before.
        round = int(due[learning & (due > round + 1)].min()) - 1
        over = learning & (due <= round + 1)
        through = over & (place + 1 == count)
        there = learning & (began <= round) & ~through
        slowest = (place + over)[there].min() if there.any() else 0
        moving = over & (through | (place + 1 - slowest <= max_lag))
        for client in np.flatnonzero(moving).tolist():
            spans[client].append((int(began[client]), round))
            place[client] += 1
            if through[client]:
                continue
            pause = break_rounds if breaks.get(client) == place[client] else 0
            began[client] = round + 1 + pause
            due[client] = began[client] + lengths[client][place[client]]
        learning &= ~through
    return spans


def _chosen(share: float, clients: int, seed: int, purpose: str) -> list[int]:
    """Return a rounded share of the clients, drawn once, ascending."""
    number = round_half_up(share * clients)
    return sorted(numpy_generator(seed, purpose).permutation(clients)[:number].tolist())


def _without_stream(scenario: Scenario, client: int, late: int, pauses: bool) -> Course:
    first, last, away = late + 1, scenario.rounds, scenario.population.break_rounds
    told = f"client {client} would join after round {late} of {last}; use a smaller late_by"
    refuse_if(first > last, told, "population.late_by")
    if not pauses or last - first < away + 1:  # a break needs a round before and after it
        return (Span(None, first, last),)
    before = int(numpy_generator(scenario.seed, "break", client=client).integers(first, last - away))
    return (Span(None, first, before), Span(None, before + away + 1, last))


def _cut_short(course: Course, client: int, seed: int) -> Course:
    """Return a client's course until it leaves, before its last round."""
    there = sum(span.last - span.first + 1 for span in course)
    if there < 2:
        return course
    left = int(numpy_generator(seed, "leaving", client=client).integers(1, there))
    kept = []
    for span in course:
        length = min(span.last - span.first + 1, left)
        if length == 0:
            break
        kept.append(span._replace(last=span.first + length - 1))
        left -= length
    return tuple(kept)
