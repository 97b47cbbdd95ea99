"""Resumed runs keep their scenario or add rounds."""

from __future__ import annotations

import pytest

from fedkd.errors import UserError
from fedkd.plan.continuation import check_continuation
from fedkd.plan.load import parse_scenario
from fedkd.scenario.identity import changed_keys, result_relevant_keys


@pytest.fixture
def began(digits_scenario):
    return result_relevant_keys(parse_scenario(digits_scenario))


def check(began, tables, done=1, **changes):
    check_continuation(began, done, parse_scenario(tables | changes))


def test_place_and_engine_may_change_on_resume(began, digits_scenario):
    engine = {"kind": "ray", "actors": 2}
    check(began, digits_scenario, name="other", engine=engine, checkpoint_every=5, plugin_path=["elsewhere"])
    mnist = digits_scenario | {"data": digits_scenario["data"] | {"dataset": "mnist"}}
    moved = mnist["data"] | {"root": "/elsewhere"}
    check(result_relevant_keys(parse_scenario(mnist)), mnist, data=moved)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 8}, "seed was 7 and is 8"),
        ({"training": {"lr": 0.02, "batch_size": 20}}, "training.lr was 0.01 and is 0.02"),
        ({"clients": [{"model": "mlp"}, {"model": "lenet"}]}, "clients.1.model was None and is 'lenet'"),
        ({"engine": {"kind": "inline", "threads_per_client": 2}}, "threads_per_client was None and is 2"),
        ({"fusion": {"strategy": "fedmd"}}, "fusion.strategy was 'knfu' and is 'fedmd'"),
    ],
)
def test_result_relevant_keys_may_not_change_on_resume(changes, told, began, digits_scenario):
    with pytest.raises(UserError, match="the run began with other values: ") as caught:
        check(began, digits_scenario, **changes)
    assert told in str(caught.value)
    assert str(caught.value).count(" was ") <= 3


def test_rounds_may_increase_and_not_decrease(began, digits_scenario):
    check(began, digits_scenario, done=2, rounds=9)
    with pytest.raises(UserError, match="rounds: the run began with 2 rounds and cannot have fewer, got 1"):
        check(began, digits_scenario, rounds=1)


@pytest.mark.parametrize(
    ("tables", "done", "reason"),
    [
        ({"training": {"schedule": "cosine"}}, 1, "the learning rates"),
        ({"end_with": "training"}, 3, "it has ended with a local training"),
        ({"fusion": {"strategy": "masters"}}, 1, "the strategy 'masters' depends"),
        ({"fusion": {"strategy": "fedkd_wu"}}, 1, "the strategy 'fedkd_wu' depends"),
    ],
)
def test_runs_that_depend_on_rounds_cannot_be_extended(tables, done, reason, digits_scenario):
    tables = digits_scenario | tables
    began = result_relevant_keys(parse_scenario(tables))
    with pytest.raises(UserError, match=f"rounds: a run of 2 rounds cannot be extended: {reason}"):
        check(began, tables, done=done, rounds=3)
    check(began, tables, done=0, rounds=3)


def test_strategies_independent_of_rounds_can_be_extended(digits_scenario):
    tables = digits_scenario | {"fusion": {"strategy": "masters", "warm_up": 0.0}}
    check(result_relevant_keys(parse_scenario(tables)), tables, rounds=3)


def test_changed_keys_are_dotted_and_sorted():
    before = {"a": {"b": 1, "c": [1, 2], "d": {}}, "e": None}
    now = {"a": {"b": 2, "c": [1], "d": {"x": 1}}, "e": None, "f": 0}
    assert changed_keys(before, now) == {
        "a.b": (1, 2),
        "a.c.1": (2, None),
        "a.d": ({}, None),
        "a.d.x": (None, 1),
        "f": (None, 0),
    }
    assert changed_keys(now, now) == {}


def test_newer_keys_at_their_defaults_do_not_block_a_resume(digits_scenario):
    tables = result_relevant_keys(parse_scenario(digits_scenario))
    assert (
        not {"kd_weight", "kd_weight_decay", "logit_adjustment", "absent_by_experts"}
        & tables["fusion"].keys()
    )
    assert "alpha" not in tables["data"]["transfer"]
    other = digits_scenario | {"fusion": {"strategy": "knfu", "kd_weight": 0.3, "absent_by_experts": True}}
    found = result_relevant_keys(parse_scenario(other))["fusion"]
    assert found["kd_weight"] == 0.3 and found["absent_by_experts"] is True and "kd_weight_decay" not in found
