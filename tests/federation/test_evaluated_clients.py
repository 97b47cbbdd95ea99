"""Evaluating some clients does not change their results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from stopping import StopInRound

import fedkd
from fedkd.clients.evaluation.evaluator import Evaluator
from fedkd.errors import Interrupted, UserError
from fedkd.plan.client_roles import counted_clients, evaluated_clients, poisoned_clients
from fedkd.plan.load import load_plan, load_scenario
from fedkd.scenario.schema import Scenario
from fedkd.simulation.scenario_check import check_plan

pytestmark = pytest.mark.usefixtures("no_report")

CLIENTS, SOME = 5, 2
STREAM = {
    "learner": "ewc",
    "rounds_per_task": 1,
    "tasks": {"kind": "split", "count": 3, "classes_per_task": 3},
}
CASES: dict[str, dict[str, Any]] = {
    "knowledge": {"fusion": {"strategy": "knfu", "beta": 1.0}, "end_with": "training"},
    "partial participation": {"fusion": {"strategy": "dsfl"}, "clients_per_round": 2},
    "averaging": {"fusion": {"strategy": "flwr:FedAvg"}},
    "a stream": {"continual": STREAM, "fusion": {"strategy": "fedmd"}},
}


@pytest.fixture(params=CASES)
def path(request, digits_scenario, tmp_path) -> Path:
    partition = {"scheme": "dirichlet", "alpha": 1.0, "samples_per_client": 40}
    data = digits_scenario["data"] | {"clients": CLIENTS, "partition": partition, "test_size": 60}
    tables = digits_scenario | {"rounds": 3, "data": data} | CASES[request.param]
    if "continual" in tables:
        del tables["rounds"]
    found = tmp_path / "scenario.toml"
    found.write_text(tomli_w.dumps(tables))
    return found


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_evaluated_clients_reach_the_same_accuracies(path, tmp_path):
    everyone = fedkd.run(load_scenario(path), out=tmp_path / "everyone")
    some = fedkd.run(load_scenario(path, [f"evaluate_clients={SOME}"]), out=tmp_path / "some")
    chosen = evaluated_clients(load_scenario(path, [f"evaluate_clients={SOME}"]))
    assert len(chosen) == SOME
    training = ("loss", "effective_neighbours")

    def own(folder: str, *, of: set[int]) -> list[dict[str, Any]]:
        return [row for row in rows_of(tmp_path / folder) if row["client"] in of]

    assert own("some", of=set(chosen)) == own("everyone", of=set(chosen))
    rest = set(range(CLIENTS)) - set(chosen)
    others = own("some", of=rest)
    assert others and {row["metric"] for row in others} <= set(training)
    last = max(row["round"] for row in others)
    assert others == [
        row
        for row in own("everyone", of=rest)
        if row["metric"] in training and row["split"] == "train" and row["round"] <= last
    ]

    final = some.summary["final"]
    if some.summary.get("continual") is None:
        end = (load_scenario(path).last_round, "accuracy", "global")
        rows = own("some", of=set(chosen))
        accuracy = [row["value"] for row in rows if (row["round"], row["metric"], row["split"]) == end]
        assert final["accuracy_global"]["mean"] == pytest.approx(sum(accuracy) / SOME)
    assert final["bytes_up"] == everyone.summary["final"]["bytes_up"]
    assert final["bytes_down"] == everyone.summary["final"]["bytes_down"]


def test_only_evaluated_clients_are_measured_before_fusion(path, tmp_path, monkeypatch):
    measured: set[int] = set()
    remember = Evaluator.measure_before_fusion

    def note(evaluator: Evaluator, *args: Any, **options: Any) -> None:
        measured.add(evaluator._client.index)
        remember(evaluator, *args, **options)

    monkeypatch.setattr(Evaluator, "measure_before_fusion", note)
    scenario = load_scenario(path, [f"evaluate_clients={SOME}"])
    fedkd.run(scenario, out=tmp_path / "run")
    assert measured == set(evaluated_clients(scenario))


def test_a_stopped_run_ends_with_the_same_bytes(path, tmp_path):
    scenario = load_scenario(path, [f"evaluate_clients={SOME}"])
    fedkd.run(scenario, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        fedkd.run(scenario, out=tmp_path / "stopped", observers=[StopInRound(2)])
    fedkd.resume(tmp_path / "stopped")
    whole, stopped = (tmp_path / name / "metrics.jsonl" for name in ("whole", "stopped"))
    assert whole.read_bytes() == stopped.read_bytes()


@pytest.mark.parametrize("poisoned", [0.0, 0.4, 0.8, 1.0])
def test_the_evaluated_clients_follow_the_setting(poisoned):
    scenario = Scenario.model_validate(
        {"seed": 3, "evaluate_clients": 4, "data": {"clients": 10}, "faults": {"poisoned": poisoned}}
    )
    chosen, bad = set(evaluated_clients(scenario)), poisoned_clients(scenario)
    honest = set(range(10)) - bad
    assert len(chosen) == 4 and len(chosen & honest) == min(4, len(honest))
    assert counted_clients(scenario) == (chosen & honest or chosen)
    others = {evaluated_clients(scenario.model_copy(update={"seed": seed})) for seed in range(5)}
    assert len(others) > 1
    everyone = scenario.model_copy(update={"evaluate_clients": None})
    assert evaluated_clients(everyone) == tuple(range(10))


def test_too_many_evaluated_clients_are_refused(digits_toml):
    with pytest.raises(UserError, match=r"evaluate_clients: must be ≤ data\.clients \(4\), got 5"):
        load_scenario(digits_toml, ["evaluate_clients=5"])
    assert any(
        "3 are evaluated" in line for line in check_plan(load_plan(digits_toml, ["evaluate_clients=3"]))
    )
