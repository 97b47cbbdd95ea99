"""Answers of evaluations that lean to a client's own classes, of any model."""

from __future__ import annotations

import numpy as np
import pytest

import fedkd
from fedkd.clients.factory import ClientFactory
from fedkd.clients.memory import checked_models
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.plan.load import parse_plan

FOREST = [{"model": "random-forest", "args": {"trees": 5}}]


def client_with(tables, kappa: float, **changes):
    plan = parse_plan(tables | {"fusion": {"strategy": "knfu", "own_prior": kappa}} | changes)
    return ClientFactory(plan, load_data(plan.scenario)).build(0)


@pytest.mark.parametrize("clients", [[{"model": "mlp"}], FOREST], ids=["network", "forest"])
def test_the_logarithm_of_own_shares_is_added(clients, digits_scenario):
    client = client_with(digits_scenario, 0.7, clients=clients)
    client.complete(client.train(1))
    own, x, y = client.data.train_y, client.data.global_x, client.data.global_y
    shares = np.array([(np.sum(own == c) + 1) / (len(own) + 10) for c in range(10)])
    expected = client.predict(x).astype(np.float64) + 0.7 * np.log(shares)
    np.testing.assert_allclose(client.answer(x), expected, atol=1e-5)
    right = expected.argmax(axis=1) == y
    np.testing.assert_array_equal(client.evaluate("global").correct, right)
    assert client.evaluate("global").accuracy == pytest.approx(right.mean())


def test_limits(digits_scenario):
    plain, leaning = client_with(digits_scenario, 0.0), client_with(digits_scenario, 1e6)
    x = plain.data.global_x
    np.testing.assert_array_equal(plain.answer(x), plain.predict(x))
    most = np.bincount(leaning.data.train_y).argmax()
    assert (leaning.answer(x).argmax(axis=1) == most).all()
    np.testing.assert_array_equal(leaning.predict(x), plain.predict(x))  # what it uploads is another thing


@pytest.mark.parametrize("strategy", ["pooled", "flwr:FedAvg"])
def test_who_shares_a_model_answers_for_itself(strategy, digits_scenario, tmp_path):
    """With a κ beyond all logits each client always answers with its own most frequent class."""
    tables = digits_scenario | {"rounds": 1, "fusion": {"strategy": strategy, "own_prior": 1e6}}
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
    assert "answers that lean to each client's own classes (`own_prior = 1e+06`)" in card


def test_learning_does_not_change(digits_scenario, tmp_path):
    tables = [digits_scenario | {"fusion": {"strategy": "knfu", "own_prior": kappa}} for kappa in (0.0, 0.5)]
    one, other = (fedkd.run(t, out=tmp_path / str(n)) for n, t in enumerate(tables))
    for name in ("loss", "agreement"):
        rows = [
            [row["value"] for row in run.metrics() if row["metric"] == name and row["split"] == "train"]
            for run in (one, other)
        ]
        assert rows[0] == rows[1] and rows[0]


def test_refused_in_a_stream(digits_scenario):
    del digits_scenario["rounds"]
    small = digits_scenario["data"] | {"partition": {"samples_per_client": 50}}
    tables = {"data": small, "fusion": {"strategy": "knfu", "own_prior": 0.1}, "continual": {}}
    plan = parse_plan(digits_scenario | tables)
    with pytest.raises(UserError, match=r"fusion.own_prior: must be 0 in a stream of tasks, .* got 0.1"):
        checked_models(plan, load_data(plan.scenario))
