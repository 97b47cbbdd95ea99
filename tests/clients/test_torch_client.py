"""One client: training, guidance, state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from fedkd.clients.base import Client
from fedkd.clients.factory import ClientFactory
from fedkd.data.federated import FederatedData, load_federated_data
from fedkd.errors import TrainingDiverged
from fedkd.plan.load import load_scenario
from fedkd.scenario.schema import Scenario


@pytest.fixture
def scenario_with(digits_scenario, tmp_path):
    """Return a function from changes of the tables to a scenario."""

    def make(fusion: dict[str, Any] | None = None, **changes: Any) -> Scenario:
        tables = digits_scenario | {"fusion": {"strategy": "knfu", **(fusion or {})}} | changes
        path = tmp_path / "scenario.toml"
        path.write_text(tomli_w.dumps(tables))
        return load_scenario(path)

    return make


def client_of(scenario: Scenario, index: int = 0, data: FederatedData | None = None) -> Client:
    return ClientFactory(scenario, data or load_federated_data(scenario)).build(index)


def targets_for(scenario: Scenario, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(10), scenario.data.transfer.size).astype(np.float32)


def weights(client: Client) -> bytes:
    return b"".join(client.weights()[name].tobytes() for name in sorted(client.weights()))


def test_clients_start_from_weights_of_their_own_and_repeat_them(scenario_with):
    scenario = scenario_with()
    assert weights(client_of(scenario, 0)) != weights(client_of(scenario, 1))
    assert weights(client_of(scenario, 0)) == weights(client_of(scenario, 0))
    assert weights(client_of(scenario, 0)) != weights(client_of(scenario_with(seed=8), 0))


def test_guidance_of_a_round_is_learned_once(scenario_with):
    scenario = scenario_with()
    client, targets = client_of(scenario), targets_for(scenario)
    before = weights(client)
    client.learn({"targets": targets}, 3)
    learned = weights(client)
    assert learned != before
    for round in (3, 2, 1):
        client.learn({"targets": targets}, round)
        assert weights(client) == learned
    client.learn({"targets": targets}, 4)
    assert weights(client) != learned


def test_without_distillation_guidance_changes_nothing_but_counts_as_learned(scenario_with):
    scenario = scenario_with({"distill_epochs": 0})
    client = client_of(scenario)
    before = weights(client)
    client.learn({"targets": targets_for(scenario)}, 1)
    assert weights(client) == before
    assert client.applied_round == 1


def test_distillation_is_gradient_descent_on_the_strategys_loss(scenario_with):
    """A linear model, one step of SGD on the whole transfer set, against the gradient by hand."""
    temperature, lr = 2.0, 0.3
    scenario = scenario_with(
        {"temperature": temperature, "distill_lr": lr, "distill_batch_size": 60},
        training={"optimizer": "sgd", "lr": 0.01},
        clients=[{"model": "mlp", "args": {"hidden": []}}],
    )
    data = load_federated_data(scenario)
    client, wanted = client_of(scenario, data=data), targets_for(scenario).astype(np.float64)
    before = client.weights()
    client.learn({"targets": wanted.astype(np.float32)}, 1)
    after = client.weights()
    (weight,) = [name for name in before if before[name].ndim == 2]
    (bias,) = [name for name in before if before[name].ndim == 1]

    x = data.transfer_x.reshape(len(data.transfer_x), -1).astype(np.float64)
    z = (x @ before[weight].astype(np.float64).T + before[bias]) / temperature
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    gradient = temperature**2 * (p - wanted) / temperature / len(x)  # of T² · mean KL, at the logits
    np.testing.assert_allclose(after[weight], before[weight] - lr * gradient.T @ x, atol=2e-6)
    np.testing.assert_allclose(after[bias], before[bias] - lr * gradient.sum(axis=0), atol=2e-6)


def test_the_private_term_changes_what_is_learned(scenario_with):
    learned = set()
    for weight in (0.0, 0.5, 1.0):
        scenario = scenario_with({"private_weight": weight})
        client = client_of(scenario)
        client.learn({"targets": targets_for(scenario)}, 1)
        learned.add(weights(client))
    assert len(learned) == 3


@pytest.mark.parametrize("round", [1, 2])
def test_the_private_term_draws_whole_shuffles(round, scenario_with):
    client = client_of(scenario_with())
    own = client.num_train_samples
    order = client._private_order(2 * own + 5, round)
    assert len(order) == 2 * own + 5
    assert sorted(order[:own]) == sorted(order[own : 2 * own]) == list(range(own))
    assert len(set(order[2 * own :])) == 5
    assert not np.array_equal(order[:own], order[own : 2 * own])
    assert np.array_equal(order, client._private_order(2 * own + 5, round))
    assert not np.array_equal(order, client._private_order(2 * own + 5, round + 1))


@pytest.mark.parametrize("model", ["mlp", "resnet8"])
def test_a_restored_client_goes_on_where_the_other_stopped(model, scenario_with):
    scenario = scenario_with({"private_weight": 0.5}, clients=[{"model": model}])
    data = load_federated_data(scenario)
    straight = client_of(scenario, data=data)
    straight.train(1)
    straight.remember_baseline(1, ["local", "global"])
    straight.learn({"targets": targets_for(scenario)}, 1)
    state = straight.state()
    kept = {name: values.copy() for name, values in state.items()}
    restored = client_of(scenario, data=data)
    restored.restore(state)
    assert restored.applied_round == 1
    assert restored.baseline(1) == straight.baseline(1)
    for client in (straight, restored):
        client.learn({"targets": targets_for(scenario)}, 1)  # again: no effect
        client.train(2)
        client.learn({"targets": targets_for(scenario, seed=1)}, 2)
    assert weights(straight) == weights(restored)
    for name, values in kept.items():
        assert state[name].tobytes() == values.tobytes(), "a state must not change once it is taken"


def test_gains_are_measured_against_the_round_they_belong_to(scenario_with):
    client = client_of(scenario_with())
    client.remember_baseline(2, ["local"])
    assert client.baseline(2)["local"] == client.evaluate("local").accuracy
    assert np.isnan(client.baseline(2)["global"])
    assert all(np.isnan(value) for value in client.baseline(3).values())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_uploads_are_predictions_on_the_transfer_set(dtype, scenario_with):
    scenario = scenario_with({"upload_dtype": dtype})
    data = load_federated_data(scenario)
    client = client_of(scenario, data=data)
    logits = client.knowledge(1)["logits"]
    assert (logits.dtype, logits.shape) == (np.dtype(dtype), (60, 10))
    client.model.eval()
    with torch.no_grad():
        wanted = client.model(torch.tensor(data.transfer_x)).numpy()
    np.testing.assert_allclose(logits, wanted, rtol=1e-3 if dtype == "float16" else 1e-5, atol=1e-3)


def test_label_counts_are_uploaded_only_to_a_strategy_that_asks(scenario_with):
    assert set(client_of(scenario_with()).knowledge(1)) == {"logits"}
    scenario = scenario_with({"distribution": "shared"})
    data = load_federated_data(scenario)
    counts = client_of(scenario, 1, data).knowledge(1)["label_counts"]
    assert counts.tolist() == [int((data.client(1).train_y == c).sum()) for c in range(10)]


def test_a_client_of_local_uploads_nothing(digits_scenario, scenario_with):
    assert client_of(scenario_with(fusion={"strategy": "local"})).knowledge(1) == {}


def test_predictions_that_are_not_numbers_are_not_uploaded(scenario_with):
    client = client_of(scenario_with())
    with torch.no_grad():
        next(client.model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match=r"lower training\.lr"):
        client.knowledge(1)
