from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.clients.client import Client
from fedkd.clients.evaluation.trials import run_trials, trial_knowledge
from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.fusion.math.probabilities import softmax
from fedkd.plan.load import parse_plan

SGD = {"optimizer": "sgd", "lr": 0.5, "batch_size": 20}


def trained(tables, **changes) -> Client:
    plan = parse_plan(tables | changes)
    client = ClientFactory(plan, load_data(plan.scenario)).build(0)
    client.complete(client.train(1))
    return client


def test_a_trial_step_equals_the_formula(digits_scenario):
    """A linear model and one batch of all transfer samples: W − η (softmax z − t)ᵀ x / M, in float64."""
    fusion = {"strategy": "knfu", "distill_batch_size": 60}
    client = trained(
        digits_scenario, clients=[{"model": "mlp", "args": {"hidden": []}}], training=SGD, fusion=fusion
    )
    (weight, bias), x = client.weights().values(), client.data.transfer_x.reshape(60, -1).astype(np.float64)
    wanted = np.random.default_rng(0).dirichlet(np.ones(10), (2, 60)).astype(np.float32)
    before = {name: values.copy() for name, values in client.state().items()}
    trials = client.complete(run_trials(client, wanted, 1, 1))
    for name, values in client.state().items():
        assert_array_equal(values, before[name], err_msg=name)
    tests = ((client.data.test_x, client.data.test_y), (client.data.global_x, client.data.global_y))
    for row, targets in enumerate(wanted):
        z = x @ weight.T + bias
        q = np.exp(z - z.max(axis=1, keepdims=True))
        slope = (q / q.sum(axis=1, keepdims=True) - targets) / 60
        moved, shifted = weight - 0.5 * slope.T @ x, bias - 0.5 * slope.sum(axis=0)
        assert_array_equal(trials["answers"][row], (x @ moved.T + shifted).argmax(axis=1))
        for column, (inputs, labels) in enumerate(tests):
            flat = inputs.reshape(len(labels), -1)
            accuracy = ((flat @ moved.T + shifted).argmax(axis=1) == labels).mean()
            was = ((flat @ weight.T + bias).argmax(axis=1) == labels).mean()
            assert trials["gains"][row, column] == pytest.approx(accuracy - was, abs=1e-12)


def test_a_good_teacher_helps_and_a_bad_one_harms(digits_scenario):
    client = trained(digits_scenario, training={"lr": 0.01, "batch_size": 20})
    labels = load_data(client.plan.scenario).transfer_y
    truth = np.eye(10, dtype=np.float32)[labels]
    own = softmax(client.predict(client.data.transfer_x))
    senders = np.stack([truth, own, np.roll(truth, 1, axis=1)])
    gains = client.complete(run_trials(client, senders, 3, 1))["gains"][:, 1]
    assert gains[0] > 0.1 > gains[1] > -0.1 > gains[2]


def test_a_client_gains_nothing_from_itself(digits_scenario):
    """Its own predictions have no gradient where it stands, up to rounding, which SGD leaves as small."""
    client = trained(digits_scenario, training=SGD)
    own = softmax(client.predict(client.data.transfer_x))[None]
    trials = client.complete(run_trials(client, own, 1, 1))
    assert_array_equal(trials["gains"], 0.0)
    assert_array_equal(trials["answers"][0], own[0].argmax(axis=1))


def test_trials_show_accuracy_now_and_before_training(digits_scenario):
    client = trained(digits_scenario)
    told = trial_knowledge(client, 1)
    untrained = ClientFactory(client.plan, load_data(client.plan.scenario)).build(0)
    x = client.data.transfer_x
    assert_array_equal(told["logits"], client.predict(x))
    assert_allclose(told["start"], softmax(untrained.predict(x)).mean(axis=0), rtol=1e-5)


def test_a_poisoned_client_shows_its_poisoned_upload(digits_scenario):
    client = trained(digits_scenario, faults={"poisoned": 1.0, "poison": "imitation"})
    assert_array_equal(trial_knowledge(client, 1)["logits"], client.upload(1)["logits"])
    assert (trial_knowledge(client, 1)["logits"] != client.predict(client.data.transfer_x)).any()
