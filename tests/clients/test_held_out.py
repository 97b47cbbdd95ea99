"""Private samples that a strategy holds out from training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.plan.load import parse_plan

MODELS = {
    "network": {"model": "mlp", "args": {"hidden": [8]}},
    "estimator": {"model": "random-forest", "args": {"trees": 3}},
}


@pytest.mark.parametrize(
    ("kind", "share", "stopping", "apart"),
    [
        ("network", 0.2, None, 0.2),
        ("network", 0.2, 0.4, 0.4),
        ("network", 0.4, 0.2, 0.4),
        ("estimator", 0.2, None, 0.2),
    ],
)
def test_held_out_samples_are_drawn_once_and_never_trained_on(kind, share, stopping, apart, digits_scenario):
    stops = {"early_stopping": {"validation": stopping}} if stopping else {}
    training = {} if kind == "estimator" else digits_scenario["training"] | stops
    fusion = {"strategy": "masters", "held_out_share": share}
    tables = digits_scenario | {"clients": [MODELS[kind]], "training": training, "fusion": fusion}
    plan = parse_plan(tables)
    client = ClientFactory(plan, load_data(plan.scenario)).build(1)
    labels = client.data.train_y
    rows, trained_on = client.samples.split().kept_apart, client.samples.rows(1)
    assert_array_equal(np.sort([*rows, *trained_on]), np.arange(len(labels)))
    assert abs(len(rows) - apart * len(labels)) <= 1
    assert_array_equal(rows, client.samples.split().kept_apart)
    logits, told = client.at(1).held_out()
    assert_array_equal(told, labels[rows])
    assert_array_equal(logits, client.predict(client.data.train_x[rows]))

    if stopping is None:  # else it is by these samples that training stops
        x = client.data.train_x.copy()
        x[rows] = 0.0
        spoilt = ClientFactory(plan, load_data(plan.scenario)).build(1)
        spoilt.samples.data = replace(spoilt.data, train_x=x)
        for one in (client, spoilt):
            one.complete(one.train(1))
        assert_array_equal(client.predict(x), spoilt.predict(x))


def test_too_few_samples_leave_none_held_out(digits_scenario):
    tables = digits_scenario | {"fusion": {"strategy": "masters", "held_out_share": 0.01}}
    plan = parse_plan(tables)
    client = ClientFactory(plan, load_data(plan.scenario)).build(0)
    logits, labels = client.at(1).held_out()
    assert logits.shape == (0, 10) and labels.shape == (0,)
    assert len(client.samples.rows(1)) == len(client.data.train_y)
