"""One client: training, guidance, state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from fedkd.clients.client import Client
from fedkd.clients.factory import ClientFactory
from fedkd.data.federated import FederatedData, load_federated_data
from fedkd.errors import TrainingDiverged
from fedkd.plan.load import load_plan
from fedkd.plan.plan import Plan


@pytest.fixture
def plan_with(digits_scenario, tmp_path):
    """Return a function from changes of the tables to a plan."""

    def make(fusion: dict[str, Any] | None = None, **changes: Any) -> Plan:
        tables = digits_scenario | {"fusion": {"strategy": "knfu", **(fusion or {})}} | changes
        path = tmp_path / "scenario.toml"
        path.write_text(tomli_w.dumps(tables))
        return load_plan(path)

    return make


def client_of(plan: Plan, index: int = 0, data: FederatedData | None = None) -> Client:
    return ClientFactory(plan, data or load_federated_data(plan.scenario)).build(index)


def targets_for(plan: Plan, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(10), plan.scenario.data.transfer.size).astype(np.float32)


def weights(client: Client) -> bytes:
    return b"".join(client.weights()[name].tobytes() for name in sorted(client.weights()))


def test_initial_weights_differ_by_client_and_repeat(plan_with):
    plan = plan_with()
    assert weights(client_of(plan, 0)) != weights(client_of(plan, 1))
    assert weights(client_of(plan, 0)) == weights(client_of(plan, 0))
    assert weights(client_of(plan, 0)) != weights(client_of(plan_with(seed=8), 0))


def test_guidance_of_a_round_is_applied_once(plan_with):
    plan = plan_with()
    client, targets = client_of(plan), targets_for(plan)
    before = weights(client)
    client.complete(client.learn({"targets": targets}, 3))
    learned = weights(client)
    assert learned != before
    for round in (3, 2, 1):
        client.complete(client.learn({"targets": targets}, round))
        assert weights(client) == learned
    client.complete(client.learn({"targets": targets}, 4))
    assert weights(client) != learned


def test_zero_distillation_epochs_change_nothing(plan_with):
    plan = plan_with({"distill_epochs": 0})
    client = client_of(plan)
    before = weights(client)
    client.complete(client.learn({"targets": targets_for(plan)}, 1))
    assert weights(client) == before
    assert client.applied_round == 1


def test_distillation_is_gradient_descent_on_the_strategys_loss(plan_with):
    """A linear model, one step of SGD on the whole transfer set, against the gradient by hand."""
    temperature, lr = 2.0, 0.3
    plan = plan_with(
        {"temperature": temperature, "distill_lr": lr, "distill_batch_size": 60},
        training={"optimizer": "sgd", "lr": 0.01},
        clients=[{"model": "mlp", "args": {"hidden": []}}],
    )
    data = load_federated_data(plan.scenario)
    client, wanted = client_of(plan, data=data), targets_for(plan).astype(np.float64)
    before = client.weights()
    client.complete(client.learn({"targets": wanted.astype(np.float32)}, 1))
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


def test_the_cross_entropy_term_changes_the_weights(plan_with):
    learned = set()
    for weight in (0.0, 0.5, 1.0):
        plan = plan_with({"ce_weight": weight})
        client = client_of(plan)
        client.complete(client.learn({"targets": targets_for(plan)}, 1))
        learned.add(weights(client))
    assert len(learned) == 3


@pytest.mark.parametrize("round", [1, 2])
def test_the_cross_entropy_term_draws_whole_shuffles(round, plan_with):
    client = client_of(plan_with())
    own = client.num_train_samples
    order = client.trainer.jobs.private_order(2 * own + 5, round)
    assert len(order) == 2 * own + 5
    assert sorted(order[:own]) == sorted(order[own : 2 * own]) == list(range(own))
    assert len(set(order[2 * own :])) == 5
    assert not np.array_equal(order[:own], order[own : 2 * own])
    assert np.array_equal(order, client.trainer.jobs.private_order(2 * own + 5, round))
    assert not np.array_equal(order, client.trainer.jobs.private_order(2 * own + 5, round + 1))


@pytest.mark.parametrize("model", ["mlp", "resnet8"])
def test_a_restored_client_continues_exactly(model, plan_with):
    plan = plan_with({"ce_weight": 0.5}, clients=[{"model": model}])
    data = load_federated_data(plan.scenario)
    straight = client_of(plan, data=data)
    straight.complete(straight.train(1))
    straight.evaluator.measure_before_fusion(1)
    straight.complete(straight.learn({"targets": targets_for(plan)}, 1))
    state = straight.state()
    kept = {name: values.copy() for name, values in state.items()}
    restored = client_of(plan, data=data)
    restored.restore(state)
    assert restored.applied_round == 1
    for split in ("local", "global"):
        assert restored.effect.before_and_after(1, split, 0.5) == straight.effect.before_and_after(
            1, split, 0.5
        )
        assert restored.effect.before_and_after(1, split, 0.5)["accuracy_before_fusion"] != 0.5
    for client in (straight, restored):
        client.complete(client.learn({"targets": targets_for(plan)}, 1))  # again: no effect
        client.complete(client.train(2))
        client.complete(client.learn({"targets": targets_for(plan, seed=1)}, 2))
    assert weights(straight) == weights(restored)
    for name, values in kept.items():
        assert state[name].tobytes() == values.tobytes(), "a state must not change once it is taken"


def test_gains_are_measured_within_their_round(plan_with):
    client = client_of(plan_with())
    for round in (0, 1):
        untold = client.effect.before_and_after(round, "local", 0.3)
        assert (untold["accuracy_before_fusion"], untold["accuracy"]) == (0.3, 0.3) and np.isnan(
            untold["fusion_gain"]
        )
    client.evaluator.measure_before_fusion(2)
    for split in ("local", "global"):
        before = client.evaluator.evaluate(split).accuracy
        assert client.effect.before_and_after(2, split, 0.75) == {
            "accuracy_before_fusion": before,
            "accuracy": 0.75,
            "fusion_gain": 0.75 - before,
        }
        assert client.effect.before_and_after(3, split, 0.75)["accuracy_before_fusion"] == 0.75
        assert np.isnan(client.effect.before_and_after(3, split, 0.75)["fusion_gain"])
    client.evaluator.measure_before_fusion(4, changes=False)
    told = {"accuracy_before_fusion": 0.75, "accuracy": 0.75, "fusion_gain": 0.0}
    assert client.effect.before_and_after(4, "local", 0.75) == told


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_uploads_are_predictions_on_the_transfer_set(dtype, plan_with):
    plan = plan_with({"upload_dtype": dtype})
    data = load_federated_data(plan.scenario)
    client = client_of(plan, data=data)
    logits = client.upload(1)["logits"]
    assert (logits.dtype, logits.shape) == (np.dtype(dtype), (60, 10))
    client.network().eval()
    with torch.no_grad():
        wanted = client.network()(torch.tensor(data.transfer_x)).numpy()
    np.testing.assert_allclose(logits, wanted, rtol=1e-3 if dtype == "float16" else 1e-5, atol=1e-3)


def test_label_counts_are_uploaded_on_request_only(plan_with):
    assert set(client_of(plan_with()).upload(1)) == {"logits"}
    plan = plan_with({"distribution": "shared"})
    data = load_federated_data(plan.scenario)
    counts = client_of(plan, 1, data).upload(1)["label_counts"]
    assert counts.tolist() == [int((data.client(1).train_y == c).sum()) for c in range(10)]


def test_the_local_baseline_uploads_nothing(digits_scenario, plan_with):
    assert client_of(plan_with(fusion={"strategy": "local"})).upload(1) == {}


def test_nan_predictions_are_not_uploaded(plan_with):
    client = client_of(plan_with())
    with torch.no_grad():
        next(client.network().parameters()).fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match=r"lower training\.lr"):
        client.upload(1)
