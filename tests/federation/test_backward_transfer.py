"""Federated backward transfer in whole runs."""

from __future__ import annotations

import pytest
from stopping import StopInRound

import fedkd
from fedkd.data.load import load_data
from fedkd.errors import Interrupted, UserError
from fedkd.models.build import build_group_models
from fedkd.plan.checks.requirements import check_requirements
from fedkd.plan.load import parse_plan, parse_scenario

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def tables(digits_scenario) -> dict:
    del digits_scenario["rounds"]
    data = digits_scenario["data"] | {"clients": 3, "transfer": {"size": 20}, "test_size": 40}
    data["partition"] = {"scheme": "iid", "samples_per_client": 30}
    return digits_scenario | {
        "seed": 5,  # orders 2 1 0, 0 1 2, 2 0 1: the third client meets task 0 when the second has left it
        "data": data,
        "clients": [{"model": "mlp", "args": {"hidden": [20]}}],
        "fusion": {"strategy": "knfu", "knowledge_cache": {}, "backward_transfer": True},
        "continual": {
            "learner": "exssnet",
            "tasks": {"kind": "split", "count": 3, "classes_per_task": 3, "order": "shuffled"},
        },
    }


def test_backward_transfer_costs_bytes_down_and_resumes_the_same(tables, tmp_path):
    whole = fedkd.run(parse_scenario(tables), out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        fedkd.run(parse_scenario(tables), out=tmp_path / "stopped", observers=[StopInRound(2)])
    fedkd.resume(tmp_path / "stopped")
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == (
        whole.folder / "metrics.jsonl"
    ).read_bytes()
    tables["fusion"]["backward_transfer"] = False
    off = fedkd.run(parse_scenario(tables | {"evaluate_every": 3}), out=tmp_path / "off")
    on, without = whole.summary["final"], off.summary["final"]
    assert on["bytes_up"] == without["bytes_up"]
    more, guidance = on["bytes_down"] - without["bytes_down"], 20 * 3 * 4
    assert more > 0 and more % guidance == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knowledge_cache": None}, "needs fusion.knowledge_cache"),
        ({"strategy": "fd"}, "'fd' changes local training"),
        ({"order": "same"}, "needs clients that learn tasks at different times"),
        ({"learner": "gpm"}, "'gpm' protects all old tasks together"),
        ({"learner": "supsup"}, "'supsup' forgets the scores of old masks; kkt = true keeps them"),
        ({"continual": None}, "needs a stream of tasks"),
    ],
)
def test_backward_transfer_without_an_effect_is_refused(changes, message, tables):
    tables["continual"]["tasks"] |= {key: changes[key] for key in ("order",) if key in changes}
    tables["continual"] |= {key: changes[key] for key in ("learner",) if key in changes}
    tables["fusion"] |= {key: changes[key] for key in ("strategy", "knowledge_cache") if key in changes}
    tables["fusion"] = {key: value for key, value in tables["fusion"].items() if value is not None}
    if "continual" in changes:
        del tables["continual"]
    plan = parse_plan(tables)
    data = load_data(plan.scenario)
    outputs = 9 if plan.learner is not None else 10
    with pytest.raises(UserError, match=message) as caught:
        check_requirements(plan, data, build_group_models(plan.scenario, data.input_shape, outputs))
    assert caught.value.key == "fusion.backward_transfer"
