"""A scenario is resolved once: again, or in another process, it is the same plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedkd.errors import UserError
from fedkd.plan.load import load_plan, parse_plan
from fedkd.plan.plan import Plan, open_plan, resolve_plan
from fedkd.plan.schedule import Schedule, Span
from fedkd.scenario.dump import dump_toml
from fedkd.scenario.load import read_scenario

SCENARIOS = {
    "knfu": {"fusion": {"strategy": "knfu", "beta": 2}},
    "flower": {"fusion": {"strategy": "flwr:FedAdam", "eta": 0.5}},
    "learner": {"continual": {"learner": "ewc", "rounds_per_task": 2, "tasks": {"kind": "permuted"}}},
    "mixed": {
        "clients": [{"model": "mlp", "share": 2}, {"model": "cnn", "args": {"width": 4}}],
        "clients_per_round": 3,
        "faults": {"dropout": 0.2, "poisoned": 0.25},
    },
}


def plan_of(name: str) -> Plan:
    return parse_plan({"name": name, "seed": 5, "data": {"clients": 6}} | SCENARIOS[name])


def assert_same(one: Plan, other: Plan) -> None:
    assert one.scenario == other.scenario
    assert dump_toml(one.scenario) == dump_toml(other.scenario)
    assert one.strategy == other.strategy
    assert one.learner == other.learner
    assert one.schedule == other.schedule
    assert one.groups == other.groups


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_resolved_plan_resolves_to_itself(name, tmp_path):
    plan = plan_of(name)
    assert_same(resolve_plan(plan.scenario), plan)
    path = tmp_path / "scenario.toml"
    path.write_text(dump_toml(plan.scenario))
    assert_same(load_plan(path), plan)


@pytest.mark.parametrize("name", SCENARIOS)
def test_another_process_opens_the_same_plan(name):
    plan = plan_of(name)
    assert_same(open_plan(plan.scenario.model_dump_json()), plan)


@pytest.mark.parametrize(("models", "share"), [(["mlp"], "model"), (["mlp", "lenet"], "head")])
def test_client_models_determine_what_fedgen_averages(models, share):
    plan = parse_plan({"fusion": {"strategy": "fedgen"}, "clients": [{"model": name} for name in models]})
    assert plan.strategy.share == plan.scenario.fusion.model_extra["share"] == share


def test_resolving_fills_in_missing_values():
    read = read_scenario({"fusion": {"strategy": "knfu"}, "continual": {"learner": "ewc"}})
    assert read.fusion.model_extra == {}
    plan = resolve_plan(read)
    assert plan.scenario.fusion.model_extra["beta"] == plan.strategy.beta == 10.0
    assert plan.scenario.continual.model_extra["strength"] == plan.learner.strength
    assert plan.scenario.rounds == plan.schedule.rounds == 5
    assert [group.model for group in plan.groups] == [plan.scenario.clients[0].model] * 10


def test_a_plan_without_a_stream_has_no_learner():
    assert plan_of("knfu").learner is None and plan_of("learner").learner is not None


def test_errors_are_found_on_resolution():
    with pytest.raises(UserError, match="did you mean 'beta'") as caught:
        resolve_plan(read_scenario({"fusion": {"strategy": "knfu", "betta": 1.0}}))
    assert caught.value.key == "fusion.betta"


def test_evaluated_rounds_follow_the_setting_and_include_the_last():
    plan = parse_plan({"rounds": 7, "evaluate_every": 3})
    assert [round for round in range(1, 8) if plan.evaluates(round)] == [3, 6, 7]


def test_rounds_at_the_end_of_a_task_are_evaluated():
    tasks = {"learner": "ewc", "rounds_per_task": 2, "tasks": {"count": 3}}
    plan = parse_plan({"evaluate_every": 5, "data": {"clients": 2}, "continual": tasks})
    assert [round for round in range(1, 7) if plan.evaluates(round)] == [2, 4, 5, 6]
    course = (Span(0, 1, 3), Span(1, 4, 6))
    schedule = Schedule(2, 6, (plan.schedule.course(0), course), plan.schedule.participation, (0, 1))
    assert [round for round in range(1, 7) if replace(plan, schedule=schedule).evaluates(round)] == [
        *(2, 3, 4, 5, 6),
    ]


def test_moving_a_plan_changes_only_its_device():
    plan = plan_of("mixed")
    moved = plan.on_device("cpu")
    assert (plan.scenario.engine.device, moved.scenario.engine.device) == ("auto", "cpu")
    assert moved.strategy is plan.strategy and moved.schedule is plan.schedule
    assert moved.groups == plan.groups
