"""Orders, clocks and absences of clients."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from fedkd.errors import UserError
from fedkd.plan.load import parse_plan
from fedkd.plan.schedule import Schedule, Span
from fedkd.plan.schedule_builder import _settle

N, T = 12, 5


def plan_of(tasks=None, *, seed=3, clients=N, rounds_per_task=2, **tables):
    tasks = {"count": T, **(tasks or {})}
    continual = {"tasks": tasks}
    if "pace_range" not in tasks and tasks.get("pace") != "file":
        continual["rounds_per_task"] = rounds_per_task
    return parse_plan({"seed": seed, "data": {"clients": clients}, "continual": continual, **tables})


def schedule_of(tasks=None, **options) -> Schedule:
    return plan_of(tasks, **options).schedule


def refused(tasks=None, **options) -> UserError:
    with pytest.raises(UserError) as caught:
        plan_of(tasks, **options)
    return caught.value


def lengths(schedule: Schedule, client: int) -> list[int]:
    return [span.last - span.first + 1 for span in schedule.course(client)]


# Orders ---------------------------------------------------------------------------------------------------


def test_each_client_learns_every_task_once_in_its_own_order():
    schedule = schedule_of({"order": "shuffled"})
    orders = [schedule.order(n) for n in range(N)]
    assert all(sorted(order) == list(range(T)) for order in orders)
    assert len(set(orders)) > N / 2
    assert orders == [schedule_of({"order": "shuffled"}).order(n) for n in range(N)]
    assert orders != [schedule_of({"order": "shuffled"}, seed=4).order(n) for n in range(N)]
    assert schedule.rounds == 2 * T and not schedule.in_step


def test_a_clients_order_is_independent_of_the_number_of_clients():
    few, many = (schedule_of({"order": "shuffled"}, clients=n) for n in (4, 40))
    assert [few.order(n) for n in range(4)] == [many.order(n) for n in range(4)]


@pytest.mark.parametrize(("width", "learned"), [(None, 3), (2, 2), (5, 5)])
def test_overlapping_orders_share_tasks_and_cover_all(width, learned):
    tasks = {"order": "overlapping"} | ({} if width is None else {"tasks_per_client": width})
    orders = [schedule_of(tasks).order(n) for n in range(N)]
    assert all(len(set(order)) == len(order) == learned for order in orders)
    held = Counter(task for order in orders for task in order)
    assert set(held) == set(range(T)) and max(held.values()) - min(held.values()) <= 3
    shared = {len(set(a) & set(b)) for a in orders for b in orders}
    assert len(shared) > 1 or learned == T


def test_tasks_return_in_the_same_order():
    schedule = schedule_of({"order": "shuffled", "visits": 2})
    for n in range(N):
        order = schedule.order(n)
        assert order[:T] == order[T:]
    assert schedule.rounds == 4 * T


# Clocks ---------------------------------------------------------------------------------------------------


def test_groups_are_equal_in_size_with_evenly_spread_paces():
    schedule = schedule_of({"pace": "groups", "groups": 3, "pace_range": [1, 5]})
    paces = Counter(lengths(schedule, n)[0] for n in range(N))
    assert paces == {1: 4, 3: 4, 5: 4}
    assert all(len(set(lengths(schedule, n))) == 1 for n in range(N))
    assert schedule.rounds == 5 * T


def test_a_uniform_pace_lies_between_its_bounds():
    paces = [
        lengths(schedule_of({"pace": "uniform", "pace_range": [2, 4]}, clients=200), n) for n in range(200)
    ]
    assert all(len(set(of_client)) == 1 for of_client in paces)
    counts = Counter(of_client[0] for of_client in paces)
    assert set(counts) == {2, 3, 4} and min(counts.values()) > 40


def test_a_poisson_pace_has_the_given_mean_and_at_least_one_round():
    schedule = schedule_of({"pace": "poisson"}, clients=400, rounds_per_task=3)
    drawn = [length for n in range(400) for length in lengths(schedule, n)]
    assert min(drawn) == 1
    # 2000 draws of 1 + Poisson(2): the standard error of their mean is √(2 / 2000) ≈ 0.032.
    assert abs(sum(drawn) / len(drawn) - 3.0) < 4 * 0.032


def test_clients_too_far_ahead_wait_for_the_slowest():
    spans = _settle([[1] * 4, [3] * 4], late=np.zeros(2, dtype=int), breaks={}, break_rounds=1, max_lag=1)
    assert spans == [[(1, 1), (2, 3), (4, 6), (7, 7)], [(1, 3), (4, 6), (7, 9), (10, 12)]]


@pytest.mark.parametrize("max_lag", [1, 2])
def test_no_client_is_ahead_by_more_than_the_lag(max_lag):
    tasks = {"order": "shuffled", "pace": "poisson", "max_lag": max_lag}
    schedule = schedule_of(tasks, clients=30)
    for round in range(1, schedule.rounds + 1):
        there = [n for n in range(30) if schedule.is_member(n, round)]
        places = [schedule.place(n, round) for n in there]
        assert max(places) - min(places) <= max_lag
    free = schedule_of(tasks | {"max_lag": T}, clients=30)
    assert any(
        max(free.place(n, r) for n in range(30)) - min(free.place(n, r) for n in range(30)) > max_lag
        for r in range(1, free.rounds + 1)
    )


# Absences -------------------------------------------------------------------------------------------------


def test_a_late_client_starts_all_tasks_later():
    population = {"late": 0.5, "late_by": 4}
    schedule = schedule_of(population=population)
    starts = [schedule.course(n)[0].first for n in range(N)]
    assert sum(start > 1 for start in starts) == N // 2 and max(starts) <= 5
    assert all(schedule.order(n) == tuple(range(T)) for n in range(N))
    late = starts.index(max(starts))
    assert not schedule.is_member(late, 1) and schedule.is_member(late, starts[late])
    assert schedule.rounds == 2 * T + max(starts) - 1


def test_a_pause_lies_between_two_tasks():
    schedule = schedule_of(population={"breaks": 0.5, "break_rounds": 3})
    gaps = []
    for n in range(N):
        course = schedule.course(n)
        gaps.append([b.first - a.last - 1 for a, b in pairwise(course)])
        assert lengths(schedule, n) == [2] * T
    assert sum(3 in own for own in gaps) == N // 2
    assert all(sorted(own)[:-1] == [0] * (T - 2) for own in gaps)


def test_leaving_clients_were_there_and_do_not_return():
    schedule = schedule_of({"order": "shuffled"}, population={"leaving": 1.0})
    for n in range(N):
        last = schedule.course(n)[-1].last
        assert 1 <= last < 2 * T
        assert schedule.ends(n, last) and not schedule.is_member(n, last + 1)


def test_clients_join_and_leave_within_the_rounds_without_a_stream():
    population = {"late": 0.5, "late_by": 3, "breaks": 0.5, "break_rounds": 2, "leaving": 0.25}
    plan = parse_plan({"seed": 1, "rounds": 12, "data": {"clients": 20}, "population": population})
    schedule = plan.schedule
    assert schedule.rounds == 12
    courses = [schedule.course(n) for n in range(20)]
    assert sum(course[0].first > 1 for course in courses) == 10
    assert sum(course[-1].last < 12 for course in courses) == 5
    assert all(b.first - a.last == 3 for course in courses for a, b in pairwise(course))
    assert all(span.task is None for course in courses for span in course)


def test_too_many_tasks_or_rounds_are_refused_before_allocation():
    assert refused({"order": "shuffled", "visits": 1000, "count": 5000}).key == "continual.tasks.visits"
    error = refused({"pace": "poisson"}, rounds_per_task=10**19)
    assert error.key == "continual.rounds_per_task" and "more than 1000000000 rounds" in error.message


def test_a_shared_schedule_equals_one_computed_per_client():
    shared = schedule_of({"visits": 2}).course(0)
    (spans_of_one,) = _settle([[2] * (2 * T)], np.zeros(1, dtype=int), {}, 1, float("inf"))
    assert [(span.first, span.last) for span in shared] == spans_of_one
    assert [span.task for span in shared] == [*range(T)] * 2


def test_without_absences_all_clients_share_one_schedule():
    assert schedule_of().courses == (tuple(Span(t, 2 * t + 1, 2 * t + 2) for t in range(T)),)


# As a file ------------------------------------------------------------------------------------------------


def test_a_schedule_can_be_read_from_its_file(tmp_path):
    drawn = schedule_of({"order": "shuffled", "pace": "poisson", "max_lag": 2})
    file = tmp_path / "schedule.json"
    file.write_text(drawn.to_json())
    again = plan_of({"order": "file", "pace": "file", "schedule": str(file)})
    assert again.schedule == drawn and again.scenario.rounds == drawn.rounds


def test_the_order_of_a_file_can_have_another_pace(tmp_path):
    drawn = schedule_of({"order": "shuffled", "pace": "poisson"})
    file = tmp_path / "schedule.json"
    file.write_text(drawn.to_json())
    again = schedule_of({"order": "file", "schedule": str(file)})
    assert [again.order(n) for n in range(N)] == [drawn.order(n) for n in range(N)]
    assert again.rounds == 2 * T


def spans(*course):
    return {"clients": list(range(N)), "spans": [list(span) for span in course]}


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"clients": 3, "courses": [{"clients": [0, 1, 2], "spans": [[0, 1, 2]]}]}, "is for 3 clients"),
        ({"courses": [spans((0, 1, 2), (9, 3, 4))]}, "client 0 has task 9 in round 3; tasks are 0..4"),
        ({"courses": [spans((None, 1, 2))]}, "has no task in round 1"),
        ({"courses": [spans((0, 2, 1))]}, "do not come after round 0"),
        ({"courses": [spans((0, 1.5, 2))]}, "rounds must be integers"),
        ({"courses": [spans((-1, 1, 2))]}, "-1 is not a task number"),
        ({"courses": [spans()]}, "a course must have a span"),
        ({"courses": []}, "every client must have one course"),
        ({"clients": "12"}, "must be integers"),
    ],
)
def test_a_file_with_a_wrong_schedule_is_refused(tmp_path, table, told):
    whole = {
        "clients": N,
        "rounds": 2,
        "participation": {"seed": 0, "clients_per_round": None, "dropout": 0.0},
        "courses": [spans((0, 1, 2))],
    }
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps(whole | table))
    error = refused({"order": "file", "pace": "file", "schedule": str(file)})
    assert error.key == "continual.tasks.schedule" and told in error.message


def test_a_missing_schedule_file_is_named():
    assert "no file 'nowhere.json'" in refused({"order": "file", "schedule": "nowhere.json"}).message


@pytest.mark.parametrize("name", ["~nosuchuser/x", "a" * 5000, "a\0b"])
def test_impossible_file_names_are_refused_as_missing_files(name):
    assert refused({"order": "file", "schedule": name}).key == "continual.tasks.schedule"


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"courses": [spans((0, 1, 10**18))]}, "more than 1000000000 rounds"),
        ({"clients": 10**12}, "every client must have one course"),
    ],
)
def test_an_oversized_schedule_is_refused_before_allocation(tmp_path, table, told):
    whole = {"clients": N, "rounds": 2, "participation": {"seed": 0}, "courses": [spans((0, 1, 2))]}
    file = tmp_path / "schedule.json"
    file.write_text(json.dumps(whole | table))
    assert told in refused({"order": "file", "pace": "file", "schedule": str(file)}).message


# What does not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "key"),
    [
        ({"tasks_per_client": 2}, "tasks_per_client"),
        ({"order": "overlapping", "tasks_per_client": T + 1}, "tasks_per_client"),
        ({"groups": 2}, "groups"),
        ({"pace": "groups", "groups": N + 1}, "groups"),
        ({"pace_range": [1, 2]}, "pace_range"),
        ({"pace": "uniform", "pace_range": [3, 2]}, "pace_range"),
        ({"pace": "uniform", "pace_range": [3]}, "pace_range"),
        ({"pace": "file"}, "order"),
        ({"order": "file"}, "schedule"),
        ({"schedule": "a.json"}, "schedule"),
        ({"order": "file", "schedule": "a.json", "visits": 2}, "visits"),
    ],
)
def test_unused_schedule_keys_are_refused(tasks, key):
    assert refused(tasks).key == f"continual.tasks.{key}"


def test_rounds_default_to_those_of_the_slowest_client():
    tasks = {"pace": "groups", "pace_range": [1, 3]}
    assert plan_of(tasks, rounds=3 * T).scenario.rounds == 3 * T
    error = refused(tasks, rounds=10)
    assert error.key == "rounds" and "must be 15, until the last client has finished" in error.message


def test_joining_after_the_end_is_refused():
    with pytest.raises(UserError) as caught:
        parse_plan({"rounds": 1, "population": {"late": 1.0, "late_by": 5}})
    assert caught.value.key == "population.late_by"
