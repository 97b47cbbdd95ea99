"""Rounds before the last are evaluated on a part of the common test set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedkd
from fedkd.clients.costs.arithmetic import estimate_workload
from fedkd.clients.costs.model_memory import build_checked_models
from fedkd.clients.evaluation import common_sample
from fedkd.clients.evaluation.common_sample import draw_test_sample
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.plan.load import parse_plan
from fedkd.plan.plan import Plan

pytestmark = pytest.mark.usefixtures("no_report")

PART = 40
STREAM = {"learner": "ewc", "rounds_per_task": 1, "tasks": {"kind": "split", "count": 2}}


def rows_of(folder: Path) -> dict[tuple[Any, ...], float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = map(json.loads, lines)
    return {(row["round"], row["split"], row["client"], row["metric"]): row["value"] for row in rows}


@pytest.mark.parametrize(
    "change",
    [
        {"fusion": {"strategy": "knfu", "beta": 1.0}},
        {"fusion": {"strategy": "flwr:FedAvg"}},
        {"fusion": {"strategy": "ditto"}},
        {"fusion": {"strategy": "fedmd"}, "end_with": "training"},
    ],
    ids=["knowledge", "averaging", "two models", "ends with training"],
)
def test_a_part_changes_common_figures_before_the_last_round_alone(change, digits_scenario, tmp_path):
    tables = digits_scenario | {"rounds": 3} | change
    whole = rows_of(fedkd.run(tables, out=tmp_path / "full", evaluate="full").folder)
    part = rows_of(fedkd.run(tables, out=tmp_path / "part", evaluate=PART).folder)
    sizes = {key: part.pop(key) for key in list(part) if key[3] == "test_samples"}
    assert sizes == {(round, "global", None, "test_samples"): PART for round in (1, 2)}
    assert part.keys() == whole.keys()
    changed = {key for key in whole if part[key] != whole[key] and not np.isnan(whole[key])}
    assert {(round, split) for round, split, *_ in changed} == {(1, "global"), (2, "global")}
    accuracies = [value for key, value in part.items() if key[3] == "accuracy" and key[2] is not None]
    common = [part[key] for key in changed if key[3] == "accuracy" and key[2] is not None]
    assert common and len(common) < len(accuracies)
    assert all(value * PART == pytest.approx(round(value * PART)) for value in common)


def planned(tables: dict[str, Any]) -> Plan:
    plan = parse_plan(tables)
    return common_sample.with_test_sample(plan, load_data(plan.scenario))


def test_a_part_keeps_class_shares(digits_scenario):
    plan = planned(digits_scenario | {"evaluate": PART})
    data = load_data(plan.scenario)
    x, y = draw_test_sample(plan, data)
    assert len(x) == len(y) == PART
    share = np.bincount(data.test_y, minlength=10) / len(data.test_y)
    assert np.abs(np.bincount(y, minlength=10) - PART * share).max() < 1
    again = draw_test_sample(plan, data)
    np.testing.assert_array_equal(x, again[0])
    whole = {sample.tobytes() for sample in data.test_x}
    assert {sample.tobytes() for sample in x} <= whole


@pytest.mark.parametrize(
    ("change", "number"),
    [
        # 80 training samples, three passes an epoch; 20 own test samples, and all evaluations twice.
        ({}, (3 * 80 * 8 / 4 - 2 * 20) / 2),
        ({"clients_per_round": 2}, (3 * 40 * 8 / 4 - 2 * 20) / 2),
        ({"evaluate_clients": 3}, (3 * 80 * 8 / 4 - 2 * 20 * 3 / 4) / (2 * 3 / 4)),
        ({"clients_per_round": 1, "evaluate_every": 2}, (3 * 20 * 8 / 4 - 20) / 1),
        ({"training": {"local_epochs": 1}}, 10 * 2),
    ],
    ids=["all", "two train", "three are evaluated", "every other round", "fewest"],
)
def test_a_chosen_part_leaves_evaluations_a_fifth_of_compute(change, number, digits_scenario, monkeypatch):
    monkeypatch.setattr(common_sample, "SMALL", 0)
    monkeypatch.setattr(common_sample, "FEWEST_OF_CLASS", 2)
    tables = digits_scenario | {"training": {"local_epochs": 8}} | change
    plan = planned(tables)
    assert plan.scenario.evaluate == int(number)
    for strategy in ("local", "flwr:FedAvg", "fedmd"):
        assert planned(tables | {"fusion": {"strategy": strategy}}).scenario.evaluate == int(number)
    if "evaluate_every" in change or not change:
        data = load_data(plan.scenario)
        work = estimate_workload(plan, data, build_checked_models(plan, data))
        assert work.share <= 0.2 and work.test == int(number)


def test_small_sets_streams_and_asynchronous_rounds_use_all_samples(digits_scenario):
    assert planned(digits_scenario).scenario.evaluate == "full"
    assert planned(digits_scenario | {"evaluate": 10**6}).scenario.evaluate == "full"
    del digits_scenario["rounds"]
    for other in ({"continual": STREAM}, {"rounds": 2, "asynchronous": {"buffer": 2}}):
        tables = digits_scenario | other
        assert planned(tables).scenario.evaluate == "full"
        with pytest.raises(UserError, match="in asynchronous rounds, got 40"):
            parse_plan(tables | {"evaluate": PART})


@pytest.mark.parametrize("value", [0, -1, True, "half", 2.5, []])
def test_a_wrong_part_is_refused_in_one_line(value, digits_scenario):
    with pytest.raises(UserError, match='must be "auto", "full" or a number of samples, got ') as error:
        parse_plan(digits_scenario | {"evaluate": value})
    assert error.value.key == "evaluate" and "more" not in error.value.message


def test_a_run_keeps_its_choice(digits_scenario, tmp_path):
    run = fedkd.run(digits_scenario | {"rounds": 2, "evaluate": PART}, out=tmp_path / "run")
    assert f"evaluate = {PART}\n" in (run.folder / "scenario.toml").read_text()
    longer = fedkd.resume(run.folder, rounds=3)
    straight = fedkd.run(digits_scenario | {"rounds": 3, "evaluate": PART}, out=tmp_path / "straight")
    before, after = rows_of(straight.folder), rows_of(longer.folder)
    # The former last round keeps its figures on all samples.
    assert {key for key in before if before[key] != after.get(key, before[key])} <= {
        key for key in before if key[:2] == (2, "global")
    }
