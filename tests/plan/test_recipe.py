"""The training recipe: what a client minimises together, and who says so."""

from __future__ import annotations

from dataclasses import astuple

import pytest

from fedkd.cli.main import main
from fedkd.clients.costs.model_memory import build_checked_models
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.fusion.capabilities import capabilities_of
from fedkd.fusion.registry import STRATEGIES, load_strategy_class
from fedkd.plan.load import parse_plan, parse_scenario, plan_with_changes
from fedkd.scenario.dump import dump_toml
from fedkd.scenario.identity import scenario_digest
from fedkd.scenario.toml import parse_toml


def tables(base, strategy="knfu", recipe=None, **fusion):
    training = {} if recipe is None else {"recipe": recipe}
    return base | {
        "fusion": {"strategy": strategy} | fusion,
        "training": base.get("training", {}) | training,
    }


@pytest.mark.parametrize(
    ("strategy", "recipe", "keys", "expected"),
    [
        ("knfu", None, {}, (0.0, 0.0)),
        ("knfu", "joint", {}, (1.0, 0.3)),
        ("knfu", "joint", {"kd_weight": 0.1}, (1.0, 0.1)),
        ("knfu", "joint", {"ce_weight": 0.0}, (0.0, 0.3)),
        ("knfu", None, {"ce_weight": 0.5}, (0.5, 0.0)),
        ("cronus", None, {}, (1.0, 0.0)),
        ("cronus", None, {"ce_weight": 0.0}, (0.0, 0.0)),
        ("cronus", "joint", {}, (1.0, 0.3)),
        ("comet", None, {}, (1.0, 0.0)),
        ("flwr:FedAvg", None, {}, (0.0, 0.0)),
    ],
)
def test_keys_override_the_recipe_and_the_recipe_the_paper(strategy, recipe, keys, expected, digits_scenario):
    scenario = digits_scenario | {"clients": [{"model": "mlp"}]}
    plan = parse_plan(tables(scenario, strategy, recipe, **keys))
    assert astuple(plan.recipe) == expected
    assert (plan.scenario.fusion.ce_weight, plan.scenario.fusion.kd_weight) == expected


def test_the_resolved_scenario_repeats_the_run(digits_scenario):
    plan = parse_plan(tables(digits_scenario, "cronus", "joint"))
    again = parse_plan(parse_toml(dump_toml(plan.scenario)))
    assert again.scenario == plan.scenario and again.recipe == plan.recipe


@pytest.mark.parametrize(
    ("before", "changes", "expected"),
    [
        ({}, {"fusion.strategy": "cronus"}, (1.0, 0.0)),
        ({"strategy": "cronus"}, {"fusion.strategy": "knfu"}, (0.0, 0.0)),
        ({"recipe": "joint"}, {"training.recipe": "alternating"}, (0.0, 0.0)),
        ({"recipe": "joint", "kd_weight": 0.1}, {"training.recipe": "alternating"}, (0.0, 0.1)),
        ({"ce_weight": 0.5}, {"fusion.strategy": "dsfl"}, (0.5, 0.0)),
    ],
)
def test_consequences_of_a_choice_go_with_it(before, changes, expected, digits_scenario):
    scenario = parse_scenario(tables(digits_scenario, **before))
    assert astuple(plan_with_changes(scenario, changes).recipe) == expected


def test_a_recipe_equals_its_keys(digits_scenario):
    joint = parse_scenario(tables(digits_scenario, recipe="joint"))
    keys = parse_scenario(tables(digits_scenario, ce_weight=1.0, kd_weight=0.3))
    assert scenario_digest(joint) == scenario_digest(keys) != scenario_digest(parse_scenario(digits_scenario))


def test_only_cronus_and_comet_train_jointly():
    jointly = {
        name for name in STRATEGIES.builtin if capabilities_of(load_strategy_class(name)).trains_jointly
    }
    assert jointly == {"cronus", "comet"}


def test_an_unknown_recipe_is_refused(digits_scenario):
    with pytest.raises(UserError, match=r"training\.recipe: must be one of 'alternating', 'joint'"):
        parse_plan(tables(digits_scenario, recipe="both"))


@pytest.mark.parametrize("strategy", ["local", "feddf", "fedproto", "flwr:FedAvg"])
def test_a_strategy_without_targets_cannot_train_jointly(strategy, digits_scenario, tmp_path, capsys):
    path = tmp_path / "joint.toml"
    path.write_text(dump_toml(parse_scenario(tables(digits_scenario, strategy))))
    assert main(["check", str(path), "--set", "training.recipe=joint"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and f"training.recipe: must be 'alternating' with '{strategy}'" in told[0]


@pytest.mark.parametrize("changes", [{"strategy": "cronus"}, {"recipe": "joint"}])
def test_an_online_stream_refuses_private_batches_in_distillation(changes, digits_scenario):
    stream = {"learner": "naive", "online": True, "tasks": {"kind": "split", "count": 2}}
    plan = parse_plan(tables(digits_scenario, **changes) | {"continual": stream})
    with pytest.raises(UserError, match=r"must be 0, as continual\.online trains on each sample once, got 1"):
        build_checked_models(plan, load_data(plan.scenario))
