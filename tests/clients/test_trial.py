"""Trials of guidance choose hyperparameters and leave no trace."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import fedkd
from fedkd.clients.costs.model_memory import build_checked_models
from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.plan.load import parse_plan
from fedkd.simulation.scenario_check import check_plan
from fedkd.tracking.wording import format_bytes

pytestmark = pytest.mark.usefixtures("no_report")


def client_of(tables, fusion):
    plan = parse_plan(tables | {"fusion": fusion})
    return ClientFactory(plan, load_data(plan.scenario)).build(0)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_a_trial_equals_the_training_of_a_clone(gamma, digits_scenario):
    """One epoch of Adam by hand, on a copy, from the same draws."""
    fusion = {"strategy": "chosen_beta", "distill_epochs": 3, "ce_weight": gamma}
    client = client_of(digits_scenario, fusion)
    client.complete(client.train(1))
    before, clone = client.state(), copy.deepcopy(client.network())
    samples, asked = np.arange(0, 60, 2), np.arange(1, 60, 2)
    targets = np.eye(10, dtype=np.float32)[samples % 10]
    found = client.at(1).trial(targets, samples, asked)
    after = client.state()
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name], err_msg=name)

    order = torch.randperm(
        len(samples), generator=client.trainer.jobs.distillation(targets, samples, 1).generator
    )
    x, t = torch.from_numpy(client.data.transfer_x[samples]), torch.from_numpy(targets)
    own = client.trainer.jobs.private_order(len(samples), 1)
    assert set(own) <= set(client.samples.rows(1))
    own_x, own_y = torch.from_numpy(client.data.train_x[own]), torch.from_numpy(client.data.train_y[own])
    optimizer = torch.optim.Adam(clone.parameters(), lr=0.01)
    for start in range(0, len(samples), 20):
        rows = order[start : start + 20]
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(clone(x[rows]), t[rows])
        loss = loss + gamma * torch.nn.functional.cross_entropy(clone(own_x[rows]), own_y[rows])
        loss.backward()
        optimizer.step()
    kept_x, kept_y = client.samples.kept_apart()
    with torch.no_grad():
        clone.eval()
        kept = clone(torch.from_numpy(kept_x)).numpy()
        told = clone(torch.from_numpy(client.data.transfer_x[asked])).numpy()
    np.testing.assert_allclose(found.kept_logits, kept, atol=1e-4)
    np.testing.assert_allclose(found.transfer_logits, told, atol=1e-4)
    np.testing.assert_array_equal(found.kept_labels, kept_y)
    assert len(kept_y) == round(0.2 * client.num_train_samples)


def test_one_beta_equals_knfu_to_the_bit(digits_scenario, tmp_path):
    """With one β nothing is tried and nothing kept apart, so the two runs are one."""
    values = []
    for number, fusion in enumerate(
        [{"strategy": "knfu", "beta": 2}, {"strategy": "chosen_beta", "betas": [2]}]
    ):
        result = fedkd.run(digits_scenario | {"fusion": fusion}, out=tmp_path / str(number))
        rows = [row for row in result.metrics() if row["metric"] not in ("beta", "effective_neighbours")]
        values.append(rows)
    assert values[0] == values[1] and values[0]


def test_choices_are_recorded_and_their_cost_is_counted(digits_scenario, tmp_path):
    tables = digits_scenario | {"rounds": 1, "fusion": {"strategy": "chosen_beta"}}
    result = fedkd.run(tables, out=tmp_path / "out")
    found = {row["client"]: row["value"] for row in result.metrics() if row["metric"] == "beta"}
    assert set(found) == {0, 1, 2, 3, None} and set(found.values()) - {found[None]} <= {0, 1, 2, 5, 10}
    sent = 4 * (5 * 60 * 10 * 4 + 60)
    assert result.summary["final"]["bytes_down"] == sent
    told = list(check_plan(parse_plan(tables)))
    assert any(line.startswith("traffic") and f"{format_bytes(sent)} down per round" in line for line in told)
    assert any("of these held out for selection: min 16, median 16, max 16" in line for line in told)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"continual": {}}, "'chosen_beta' lets clients compare targets"),
        ({"clients": [{"model": "random-forest"}], "training": {}}, "model 'random-forest' is not a network"),
    ],
)
def test_impossible_trials_are_refused(changes, told, digits_scenario):
    tables = digits_scenario | {"fusion": {"strategy": "chosen_beta"}} | changes
    if "continual" in changes:
        del tables["rounds"]
        tables["data"] = tables["data"] | {"partition": {"samples_per_client": 50}}
    plan = parse_plan(tables)
    with pytest.raises(UserError, match=told):
        build_checked_models(plan, load_data(plan.scenario))
