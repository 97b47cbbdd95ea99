"""Clients at chance level are reported by name for each task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stopping import StopInRound

import fedkd
from fedkd.errors import Interrupted
from fedkd.plan.load import parse_scenario
from fedkd.plan.schedule_builder import build_schedule
from fedkd.tracking.events import RunObserver
from fedkd.tracking.recorder import read_warnings

pytestmark = pytest.mark.usefixtures("no_report")

DEAF = """
import torch
from torch import nn

class Deaf(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, x):
        return self.bias + torch.zeros(len(x), 1)

def deaf(input_shape, classes):
    return Deaf(classes)
"""
"""A model that may learn how frequent classes are, and never looks at a sample."""
MODEL = "deaf:deaf"


class Told(RunObserver):
    """Keeps the warnings of a run."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def message(self, text: str) -> None:
        if text.startswith("warning"):
            self.warnings.append(text)


def run(tables: dict, out: Path) -> tuple[list[str], list[dict], dict]:
    """Return the warnings of a run, its rows of warnings, and what its summary says."""
    told = Told()
    folder = fedkd.run(parse_scenario(tables), out=out, observers=[told]).folder
    rows = read_warnings(folder)
    return told.warnings, rows, json.loads((folder / "summary.json").read_text())["at_chance"]


@pytest.fixture
def still(digits_scenario, tmp_path) -> dict:
    """Four clients, two of which learn."""
    (tmp_path / "deaf.py").write_text(DEAF)
    data = {"partition": {"scheme": "iid", "samples_per_client": 35}, "transfer": {"size": 0}}
    return digits_scenario | {
        "plugin_path": [str(tmp_path)],
        "data": digits_scenario["data"] | data,
        "clients": [{"model": MODEL}, {"model": "random-forest"}],
        "training": {"batch_size": 4},
        "fusion": {"strategy": "local"},
    }


@pytest.fixture
def stream(still) -> dict:
    """None of them learns, two pairs of digits and a single one."""
    tables = still | {
        "clients": [{"model": MODEL}],
        "continual": {"rounds_per_task": 2, "tasks": {"classes": [[0, 1], [7], [2, 3]]}},
    }
    del tables["rounds"]
    return tables


def test_clients_that_learn_give_no_warning(digits_scenario, tmp_path):
    assert run(digits_scenario | {"training": {"lr": 0.01, "local_epochs": 3}}, tmp_path / "run") == (
        [],
        [],
        [],
    )


def test_a_run_names_clients_that_end_at_chance(still, tmp_path):
    warnings, rows, summary = run(still, tmp_path / "run")
    (warning,) = warnings
    assert warning == (
        "warning: after their last training (round 2 of 2) 2 clients are no better than the majority class on"
        " their training samples: client 0 (deaf:deaf), client 2 (deaf:deaf)"
    )
    assert [(r["round"], r["client"], r["task"], r["warning"]) for r in rows] == [
        (2, 0, None, "at_chance"),
        (2, 2, None, "at_chance"),
    ]
    assert [one["client"] for one in summary] == [0, 2]
    first = rows[0]
    assert summary[0] == {
        "client": 0,
        "model": MODEL,
        "task": None,
        "round": 2,
        "accuracy": first["accuracy"],
        "chance": first["chance"],
    }
    assert first["chance"] * 28 == pytest.approx(round(first["chance"] * 28))  # of 35 samples less a fifth


def test_a_single_client_at_chance_is_reported_with_its_accuracy(still, tmp_path):
    few = still | {"clients": [{"model": MODEL}, {"model": "random-forest", "share": 3}]}
    (warning,), _, (one,) = run(few, tmp_path / "run")
    accuracy, chance = (f"{100 * one[key]:.1f} %" for key in ("accuracy", "chance"))
    assert warning == (
        f"warning: after its last training (round 2 of 2) client {one['client']} ({MODEL}) is no better than"
        f" the majority class on its training samples: {accuracy} are right, {chance} are of the majority"
        " class"
    )


def test_a_warning_names_the_round_of_the_last_training(still, tmp_path):
    """A client that is drawn in round 1 of 2 alone is told of then, and not as at the end of the run."""
    few = still | {"clients": [{"model": MODEL}], "clients_per_round": 3}
    warnings, rows, _ = run(few, tmp_path / "run")
    early = [row["client"] for row in rows if row["round"] == 1]
    assert len(early) == 1 and f"after its last training (round 1 of 2) client {early[0]} " in warnings[0]
    assert "after their last training (round 2 of 2) 3 clients " in warnings[1]


def test_every_task_with_several_classes_is_checked_for_chance(stream, tmp_path):
    warnings, rows, summary = run(stream, tmp_path / "run")
    assert [line[: line.index(" are ")] for line in warnings] == [
        "warning: after their last training on task 1/3 (round 2 of 6) 4 clients",
        "warning: after their last training on task 3/3 (round 6 of 6) 4 clients",
    ]
    named = ", ".join(f"client {client} ({MODEL})" for client in range(3))
    assert all(line.endswith(f": {named} and 1 more") for line in warnings)
    assert sorted({(row["round"], row["task"]) for row in rows}) == [(2, 0), (6, 2)]
    assert len(summary) == 8


def test_an_absent_client_is_judged_by_its_last_round_of_the_task(stream, tmp_path):
    stream = stream | {"clients_per_round": 2, "seed": 3}
    _, rows, _ = run(stream, tmp_path / "run")
    schedule = build_schedule(parse_scenario(stream))
    last: dict[tuple[int, int], int] = {}
    for round in range(1, 7):
        for client in schedule.participants(round):
            last[client, (round - 1) // 2] = round
    wanted = {(client, task, round) for (client, task), round in last.items() if task != 1}
    assert any(round % 2 for _, _, round in wanted), "nobody missed the end of a task"
    assert {(row["client"], row["task"], row["round"]) for row in rows} == wanted
    assert len(rows) == len(wanted)


def test_warnings_survive_a_resume(stream, tmp_path):
    stream = stream | {"clients_per_round": 2, "seed": 3}
    _, rows, summary = run(stream, tmp_path / "whole")
    broken = tmp_path / "broken"
    told = Told()
    with pytest.raises(Interrupted):
        fedkd.run(parse_scenario(stream), out=broken, observers=[told, StopInRound()])
    fedkd.resume(broken, observers=[told])
    for name in ("metrics.jsonl", "warnings.jsonl"):
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert json.loads((broken / "summary.json").read_text())["at_chance"] == summary
    assert len(told.warnings) == len({(row["round"]) for row in rows})


@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": {"strategy": "flwr:FedAvg"}},
        {"fusion": {"strategy": "centralized"}},
        {"end_with": "training"},
        {"training": {"batch_size": 4, "early_stopping": {"patience": 1}}},
    ],
    ids=["averaged", "centralized", "trained once more", "early stopping"],
)
def test_every_kind_of_training_is_checked_for_chance(changes, still, tmp_path):
    one = still | {"clients": [{"model": MODEL}], **changes}
    warnings, rows, _ = run(one, tmp_path / "run")
    assert len(warnings) == 1 and "4 clients are no better than the majority class" in warnings[0]
    assert {row["round"] for row in rows} == {3 if "end_with" in changes else 2}


def test_joint_training_is_checked_for_each_task(stream, tmp_path):
    stream["continual"] = stream["continual"] | {"learner": "joint"}
    _, rows, _ = run(stream, tmp_path / "run")
    # About half of the first task's 28 samples, all 28 of the second, about half of the third's.
    last = [row["chance"] for row in rows if row["task"] == 2]
    assert len(last) == 4 and all(56 <= value * 84 < 70 for value in last)
