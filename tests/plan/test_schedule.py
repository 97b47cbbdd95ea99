"""Participation and tasks of clients in every round."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from fedkd.errors import UserError
from fedkd.plan.load import parse_plan
from fedkd.plan.schedule import Participation, Schedule, Span

EVERYONE = Participation(seed=0)
GAP = Schedule(
    clients=3,
    rounds=9,
    courses=((Span(0, 1, 2), Span(1, 3, 5), Span(2, 6, 8)), (Span(1, 2, 3), Span(0, 6, 7))),
    participation=EVERYONE,
    course_of=(0, 1, 0),
)
"""Two courses; that of client 1 begins late, pauses in rounds 4 and 5, and ends before the other."""


def schedule_of(**tables) -> Schedule:
    return parse_plan({"seed": 3, "data": {"clients": 10}, **tables}).schedule


def lockstep() -> Schedule:
    return schedule_of(continual={"rounds_per_task": 3, "tasks": {"count": 4}})


# Who takes part -----------------------------------------------------------------------------------------

DRAWN_BEFORE = [
    (
        {"clients_per_round": 6, "faults": {"dropout": 0.4}},
        [(0, 3, 7, 9), (0, 1, 4, 6), (2, 6, 7, 8), (0, 2, 3, 5, 7, 8), (3, 6, 9), (1, 2, 8)],
    ),
    ({"clients_per_round": 3}, [(0, 1, 4), (0, 5, 6), (0, 3, 9), (0, 2, 4), (0, 1, 5), (1, 3, 7)]),
    ({"clients_per_round": 2, "faults": {"dropout": 0.9}}, [(1,), (0,), (0,), (0,), (6,), (3,)]),
    (
        {"faults": {"dropout": 0.5}},
        [
            (0, 2, 3, 4, 7, 9),
            (0, 1, 4, 6, 9),
            (1, 2, 3, 5, 6, 7, 8),
            (0, 3, 5, 7, 8),
            (3, 4, 5, 6, 9),
            (1, 2, 3, 5, 6, 8),
        ],
    ),
]
"""What rounds 1 to 6 of ten clients with seed 3 have always drawn: a change would change every result."""


@pytest.mark.parametrize(("tables", "drawn"), DRAWN_BEFORE)
def test_the_draws_of_a_seed_are_fixed(tables, drawn):
    schedule = schedule_of(rounds=6, **tables)
    assert [schedule.participants(round) for round in range(1, 7)] == drawn


def test_all_clients_participate_by_default():
    for asked in (None, 5, 9):
        assert Participation(0, asked).present(range(5), 1) == (0, 1, 2, 3, 4)


def test_sampled_clients_are_sorted_distinct_and_repeatable():
    rule = Participation(3, clients_per_round=7)
    for round in range(1, 50):
        drawn = rule.present(range(20), round)
        assert len(drawn) == 7
        assert list(drawn) == sorted(set(drawn))
        assert set(drawn) <= set(range(20))
        assert drawn == rule.present(range(20), round)
        assert all(type(client) is int for client in drawn)


def test_sampled_clients_differ_by_round_and_seed():
    assert len({Participation(3, 7).present(range(20), round) for round in range(1, 21)}) == 20
    assert len({Participation(seed, 7).present(range(20), 1) for seed in range(20)}) == 20


def test_every_client_is_sampled_equally_often():
    counts = [0] * 10
    for round in range(1, 2001):
        for client in Participation(0, 3).present(range(10), round):
            counts[client] += 1
    # 600 expected, standard deviation √(2000 · 0.3 · 0.7) ≈ 20.5
    assert all(abs(count - 600) < 5 * 20.5 for count in counts)


def test_dropout_has_its_probability_and_keeps_one_client():
    members = range(0, 20, 2)
    rule = Participation(7, dropout=0.3)
    present = [rule.present(members, round) for round in range(1, 501)]
    assert all(set(clients) <= set(members) and list(clients) == sorted(clients) for clients in present)
    share = np.mean([len(clients) for clients in present]) / len(members)
    assert abs(share - 0.7) < 4 * np.sqrt(0.3 * 0.7 / 5000)
    assert present == [rule.present(members, round) for round in range(1, 501)]
    alone = [Participation(7, dropout=0.999).present(members, round) for round in range(1, 51)]
    assert all(len(clients) >= 1 for clients in alone)
    assert len({clients[0] for clients in alone}) > 3, "not always the same one"


def test_dropout_does_not_depend_on_other_sampled_clients():
    rule = Participation(7, dropout=0.5)
    for round in range(1, 30):
        everyone = set(rule.present(range(20), round))
        some = set(rule.present(range(10), round))
        assert len(some) == 1 or some == everyone & set(range(10))


def test_no_client_participates_if_all_are_absent():
    assert Participation(0, clients_per_round=2, dropout=0.5).present((), 1) == ()


def test_only_present_clients_are_sampled():
    sampled = replace(GAP, participation=Participation(0, clients_per_round=1))
    assert [sampled.participants(round) for round in range(1, 10)] == [
        Participation(0, 1).present(members, round)
        for round, members in enumerate(
            [(0, 2), (0, 1, 2), (0, 1, 2), (0, 2), (0, 2), (0, 1, 2), (0, 1, 2), (0, 2), ()], start=1
        )
    ]


# Tasks ---------------------------------------------------------------------------------------------------


def test_without_a_stream_all_clients_share_one_schedule():
    schedule = schedule_of(rounds=4)
    for round in range(5):
        assert schedule.task(0, round) is None
        assert not schedule.ends(0, round)
        assert schedule.ending(round) == ()
    assert [schedule.rounds_into_task(9, round) for round in range(1, 5)] == [0, 1, 2, 3]


def test_in_lockstep_all_clients_learn_the_same_task():
    schedule = lockstep()
    assert schedule.rounds == 12
    rounds = range(1, 13)
    for client in (0, 4, 9):
        assert [schedule.task(client, round) for round in rounds] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
        assert [round for round in rounds if schedule.ends(client, round)] == [3, 6, 9, 12]
        assert [schedule.rounds_into_task(client, round) for round in rounds] == [0, 1, 2] * 4
    assert schedule.task(0, 0) == 0
    assert {round: schedule.ending(round) for round in rounds if schedule.ending(round)} == dict.fromkeys(
        (3, 6, 9, 12), tuple(range(10))
    )


def test_each_client_has_its_own_schedule():
    rounds = range(1, 10)
    assert [GAP.task(0, round) for round in rounds] == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert [GAP.task(1, round) for round in rounds] == [1, 1, 1, 1, 1, 0, 0, 0, 0]
    assert [GAP.is_member(0, round) for round in rounds] == [True] * 8 + [False]
    assert [round for round in rounds if GAP.is_member(1, round)] == [2, 3, 6, 7]
    assert [round for round in rounds if GAP.ends(1, round)] == [3, 7]
    assert [GAP.ending(round) for round in rounds] == [(), (0, 2), (1,), (), (0, 2), (), (1,), (0, 2), ()]
    assert [GAP.rounds_into_task(1, round) for round in (2, 3, 6, 7)] == [0, 1, 0, 1]
    assert [GAP.participants(round) for round in (1, 2, 4, 9)] == [(0, 2), (0, 1, 2), (0, 2), ()]


# As a file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule", [GAP, lockstep(), schedule_of()], ids=["courses", "lockstep", "no stream"]
)
def test_answers_for_all_clients_equal_those_for_each(schedule):
    for round in range(schedule.rounds + 2):
        clients = range(schedule.clients)
        assert schedule.tasks(round) == tuple(schedule.task(client, round) for client in clients)
        assert schedule.ending(round) == tuple(c for c in clients if schedule.ends(c, round))
        assert schedule.participants(round) == tuple(c for c in clients if schedule.is_member(c, round))


@pytest.mark.parametrize(
    "schedule",
    [
        GAP,
        lockstep(),
        schedule_of(rounds=4, clients_per_round=6, faults={"dropout": 0.25}),
    ],
    ids=["two courses", "lockstep", "no stream"],
)
def test_a_schedule_reads_back_equal(schedule):
    assert Schedule.from_json(schedule.to_json()) == schedule
    assert json.loads(schedule.to_json())["clients"] == schedule.clients


def changed(*path, to) -> str:
    table = json.loads(GAP.to_json())
    place = table
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps(table)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2]",
        "{}",
        "null",
        changed("clients", to=4),
        changed("clients", to="three"),
        changed("rounds", to="many"),
        changed("courses", to=[]),
        changed("courses", 0, to=7),
        changed("courses", 1, "clients", to=[0, 1]),
        changed("courses", 1, "spans", to=[]),
        changed("courses", 1, "spans", 0, to=[1, 2]),
        changed("courses", 1, "spans", 0, to=[1, 0, 3]),
        changed("courses", 1, "spans", 0, to=[1, 3, 2]),
        changed("courses", 1, "spans", 1, to=[0, 3, 7]),
        changed("courses", 1, "spans", 1, to=[0, "6", 7]),
        changed("participation", to={"sead": 1}),
    ],
)
def test_a_wrong_schedule_is_refused_with_its_file(text):
    with pytest.raises(UserError, match="not a schedule") as caught:
        Schedule.from_json(text, file="run/schedule.json")
    assert str(caught.value).startswith("run/schedule.json: ")
    assert "\n" not in str(caught.value)
