"""Logit adjustment of evaluations by a client's class shares."""

from __future__ import annotations

import numpy as np
import pytest

import fedkd
from fedkd.clients.costs.model_memory import build_checked_models
from fedkd.clients.evaluation.evaluator import KAPPAS, log_shares, smallest_kappa
from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.plan.load import parse_plan

pytestmark = pytest.mark.usefixtures("no_report")

FOREST = [{"model": "random-forest", "args": {"trees": 5}}]


def client_with(tables, kappa: float, **changes):
    if changes.get("clients") == FOREST:
        apart = {"held_out": changes["training"]["held_out"]} if "training" in changes else {}
        changes["training"] = apart  # what else is in it is for networks
    plan = parse_plan(tables | {"fusion": {"strategy": "knfu", "logit_adjustment": kappa}} | changes)
    return ClientFactory(plan, load_data(plan.scenario)).build(0)


@pytest.mark.parametrize("clients", [[{"model": "mlp"}], FOREST], ids=["network", "forest"])
def test_logit_adjustment_adds_the_log_of_class_shares(clients, digits_scenario):
    client = client_with(digits_scenario, 0.7, clients=clients)
    client.complete(client.train(1))
    own, x, y = client.data.train_y, client.data.global_x, client.data.global_y
    shares = np.array([(np.sum(own == c) + 1) / (len(own) + 10) for c in range(10)])
    expected = client.predict(x).astype(np.float64) + 0.7 * np.log(shares)
    np.testing.assert_allclose(client.evaluator.answer(x), expected, atol=1e-5)
    right = expected.argmax(axis=1) == y
    np.testing.assert_array_equal(client.evaluator.evaluate("global").correct, right)
    assert client.evaluator.evaluate("global").accuracy == pytest.approx(right.mean())


def test_kappa_0_keeps_predictions_and_a_huge_kappa_gives_the_majority(digits_scenario):
    plain, leaning = client_with(digits_scenario, 0.0), client_with(digits_scenario, 1e6)
    x = plain.data.global_x
    np.testing.assert_array_equal(plain.evaluator.answer(x), plain.predict(x))
    most = np.bincount(leaning.data.train_y).argmax()
    assert (leaning.evaluator.answer(x).argmax(axis=1) == most).all()
    np.testing.assert_array_equal(leaning.predict(x), plain.predict(x))  # what it uploads is another thing


@pytest.mark.parametrize("strategy", ["centralized", "flwr:FedAvg"])
def test_clients_with_a_shared_model_adjust_their_own_answers(strategy, digits_scenario, tmp_path):
    """With a κ beyond all logits each client always answers with its own most frequent class."""
    tables = digits_scenario | {"rounds": 1, "fusion": {"strategy": strategy, "logit_adjustment": 1e6}}
    result = fedkd.run(tables, out=tmp_path / "out")
    plan = parse_plan(tables)
    data = load_data(plan.scenario)
    found = {
        row["client"]: row["value"]
        for row in result.metrics()
        if (row["metric"], row["split"], row["round"]) == ("accuracy", "global", 1)
    }
    for index in range(4):
        own = data.client(index)
        share = np.mean(own.global_y == np.bincount(own.train_y).argmax())
        assert found[index] == pytest.approx(share), index
    card = (fedkd.export(result.folder).folder / "README.md").read_text()
    assert "a logit adjustment to each client's classes (`logit_adjustment = 1e+06`)" in card


def test_logit_adjustment_leaves_learning_unchanged(digits_scenario, tmp_path):
    tables = [
        digits_scenario | {"fusion": {"strategy": "knfu", "logit_adjustment": kappa}} for kappa in (0.0, 0.5)
    ]
    one, other = (fedkd.run(t, out=tmp_path / str(n)) for n, t in enumerate(tables))
    for name in ("loss", "agreement"):
        rows = [
            [row["value"] for row in run.metrics() if row["metric"] == name and row["split"] == "train"]
            for run in (one, other)
        ]
        assert rows[0] == rows[1] and rows[0]


def test_logit_adjustment_refuses_a_stream(digits_scenario):
    del digits_scenario["rounds"]
    small = digits_scenario["data"] | {"partition": {"samples_per_client": 50}}
    tables = {"data": small, "fusion": {"strategy": "knfu", "logit_adjustment": 0.1}, "continual": {}}
    plan = parse_plan(digits_scenario | tables)
    with pytest.raises(
        UserError, match=r"fusion.logit_adjustment: must be 0 in a stream of tasks, .* got 0.1"
    ):
        build_checked_models(plan, load_data(plan.scenario))


def test_the_smallest_kappa_within_a_standard_error_is_chosen():
    """By hand: of 100 samples 90, 92 and, from κ = 0.3 on, 95 are right: 95 − 2.2 is not reached by 92."""
    log_prior = np.log(np.array([0.8, 0.2])).astype(np.float32)
    gap = float(log_prior[0] - log_prior[1])  # what κ = 1 adds to class 0
    labels = np.zeros(100, dtype=np.int64)
    logits = np.zeros((100, 2), dtype=np.float32)
    logits[:90, 0] = 1.0
    logits[90:92, 1] = 0.15 * gap  # turned by κ = 0.2
    logits[92:95, 1] = 0.25 * gap  # turned by 0.3
    logits[95:, 1] = 2.0 * gap  # by none
    assert smallest_kappa(logits, labels, log_prior) == 0.3
    logits[92:94, 1] = 0.15 * gap  # 94 at κ = 0.2 are within the error
    assert smallest_kappa(logits, labels, log_prior) == 0.2
    assert smallest_kappa(logits[:90], labels[:90], log_prior) == 0.0  # of equal ones the smallest
    assert smallest_kappa(logits[:0], labels[:0], log_prior) == 0.0


@pytest.mark.parametrize("clients", [[{"model": "mlp"}], FOREST], ids=["network", "forest"])
def test_each_client_chooses_kappa_on_held_out_samples(clients, digits_scenario):
    client = client_with(digits_scenario, "auto", clients=clients)
    rows = client.samples.rows(1)
    x, y = client.samples.kept_apart()
    assert len(y) == round(0.2 * client.num_train_samples) and len(rows) + len(y) == client.num_train_samples
    client.data.train_x[np.setdiff1d(np.arange(client.num_train_samples), rows)] += 1e3  # not looked at
    client.complete(client.train(1))
    client.data.train_x[np.setdiff1d(np.arange(client.num_train_samples), rows)] -= 1e3
    client.evaluator.evaluate("local")
    chosen = client.evaluator.choices()["logit_adjustment"]
    log_prior = log_shares(client.private_labels(), 10)
    assert chosen == smallest_kappa(client.predict(x), y, log_prior)
    training = digits_scenario["training"] | {"held_out": 0.2}
    other = client_with(digits_scenario, chosen, clients=clients, training=training)
    other.complete(other.train(1))
    for split in ("local", "global"):
        np.testing.assert_array_equal(
            client.evaluator.evaluate(split).correct, other.evaluator.evaluate(split).correct
        )


def test_kappas_are_recorded_and_stated_in_the_model_card(digits_scenario, tmp_path):
    tables = digits_scenario | {"rounds": 1, "fusion": {"strategy": "knfu", "logit_adjustment": "auto"}}
    result = fedkd.run(tables, out=tmp_path / "out")
    found = [row["value"] for row in result.metrics() if row["metric"] == "logit_adjustment"]
    assert len(found) == 5 and set(found[:4]) <= set(KAPPAS) and found[4] == pytest.approx(np.mean(found[:4]))
    card = (fedkd.export(result.folder).folder / "README.md").read_text()
    assert '(`logit_adjustment = "auto"`)' in card


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"fusion": {"logit_adjustment": "car"}},
            r'logit_adjustment: must be a number from 0 to 1e6 or "auto", got \'car',
        ),
        (
            {"fusion": {"logit_adjustment": -1}},
            r"fusion.logit_adjustment: must be a number from 0 .*, got -1",
        ),
        (
            {"fusion": {"logit_adjustment": True}},
            r"fusion.logit_adjustment: must be a number from 0 .*, got true",
        ),
        ({"training": {"held_out": 1.0}}, r"training.held_out: must be < 1, got 1.0"),
        (
            {"training": {"held_out": 0.1, "early_stopping": {}}},
            r"training.held_out: must be left out: it applies only to runs without training.early_stopping",
        ),
        ({"training": {"held_out": 0.1}, "continual": {}}, r"training.held_out: must be left out"),
        (
            {"fusion": {"strategy": "centralized", "logit_adjustment": "auto"}},
            r"fusion.logit_adjustment: 'centralized' trains on all",
        ),
        (
            {"fusion": {"logit_adjustment": "auto"}, "continual": {}},
            r"fusion.logit_adjustment: must be 0 in a stream of tasks, .* got 'auto'",
        ),
    ],
)
def test_impossible_logit_adjustments_are_refused(changes, told, digits_scenario):
    tables = digits_scenario | changes
    if "continual" in changes:
        del tables["rounds"]
        tables["data"] = tables["data"] | {"partition": {"samples_per_client": 50}}
    with pytest.raises(UserError, match=told):
        plan = parse_plan(tables)
        build_checked_models(plan, load_data(plan.scenario))
