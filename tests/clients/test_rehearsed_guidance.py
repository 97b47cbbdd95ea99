"""Rehearsal of distillation targets in local training."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from fedkd.clients.client import Client
from fedkd.clients.costs.model_memory import build_checked_models
from fedkd.clients.factory import ClientFactory
from fedkd.clients.local.estimator_trainer import EstimatorTrainer
from fedkd.clients.local.local_loss import LastGuidance, LocalLoss, Rehearsed
from fedkd.clients.local.task_batches import of_task, task_batches
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.fusion.math.fidelity import mean_kl_divergence
from fedkd.models.estimator import IncrementalModel
from fedkd.plan.load import parse_plan
from fedkd.randomness import torch_generator

LINEAR = [{"model": "mlp", "args": {"hidden": []}}]


def of_stream(tables: dict[str, Any]) -> dict[str, Any]:
    small = tables["data"] | {"partition": {"samples_per_client": 50}}
    return {key: value for key, value in tables.items() if key != "rounds"} | {"data": small}


@pytest.fixture
def client_with(digits_scenario):
    """Return a function from changes of the tables to a client."""

    def make(fusion: dict[str, Any] | None = None, **changes: Any):
        tables = digits_scenario | {"fusion": {"strategy": "knfu", **(fusion or {})}} | changes
        if "continual" in changes:
            tables = of_stream(tables)
        plan = parse_plan(tables)
        return ClientFactory(plan, load_data(plan.scenario)).build(0)

    return make


def targets(rows: int = 60, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(10), rows).astype(np.float32)


def weights(client) -> bytes:
    return b"".join(client.weights()[name].tobytes() for name in sorted(client.weights()))


def teach(client, round: int, seed: int = 0) -> None:
    client.complete(client.learn({"targets": targets(len(client.data.transfer_x), seed)}, round))


@pytest.mark.parametrize("age", [0, 2])
def test_a_local_step_descends_on_both_losses(age, client_with):
    """A linear model, one step of SGD on all samples of both kinds, against the gradients in float64."""
    temperature, lr, rho, decay = 2.0, 0.3, 0.7, 0.5
    client = client_with(
        {"temperature": temperature, "kd_weight": rho, "kd_weight_decay": decay, "distill_epochs": 0},
        training={"optimizer": "sgd", "lr": lr, "batch_size": 100},
        clients=LINEAR,
    )
    teach(client, 1)
    before = client.weights()
    client.complete(client.train(2 + age))
    after = client.weights()
    (weight,) = [name for name in before if before[name].ndim == 2]
    (bias,) = [name for name in before if before[name].ndim == 1]

    def gradients(x: np.ndarray, wanted: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
        flat = x.reshape(len(x), -1).astype(np.float64)
        z = (flat @ before[weight].astype(np.float64).T + before[bias]) / t
        p = np.exp(z - z.max(axis=1, keepdims=True))
        error = t * (p / p.sum(axis=1, keepdims=True) - wanted) / len(x)  # of t² · mean KL
        return error.T @ flat, error.sum(axis=0)

    own = gradients(client.data.train_x, np.eye(10)[client.data.train_y], 1.0)
    guided = gradients(client.data.transfer_x, targets().astype(np.float64), temperature)
    rho *= decay**age
    np.testing.assert_allclose(after[weight], before[weight] - lr * (own[0] + rho * guided[0]), atol=2e-6)
    np.testing.assert_allclose(after[bias], before[bias] - lr * (own[1] + rho * guided[1]), atol=2e-6)


def test_each_step_takes_the_next_batch_of_target_samples(client_with, digits_scenario):
    client = client_with(
        {"strategy": "dsfl", "kd_weight": 1.0, "distill_epochs": 0},
        training={"optimizer": "sgd", "lr": 0.1, "batch_size": 20, "local_epochs": 2},
        clients=LINEAR,
    )
    some, wanted = np.arange(5, 55, 2), targets(25)
    client.complete(client.learn({"targets": wanted, "samples": some}, 1))
    model, seed = deepcopy(client.network()), digits_scenario["seed"]
    x, y = torch.tensor(client.data.train_x), torch.tensor(client.data.train_y)
    own = torch_generator(seed, "train-batches", client=0, round=2)
    private = [part for _ in range(2) for part in torch.randperm(len(x), generator=own).split(20)]
    other = torch_generator(seed, "rehearsal-batches", client=0, round=2)
    order = torch.cat([torch.randperm(25, generator=other) for _ in range(8)]).split(20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for rows, rehearsed in zip(private, order, strict=False):
        optimizer.zero_grad()
        guided = model(torch.tensor(client.data.transfer_x[some])[rehearsed])
        value = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
        value = value + torch.nn.functional.cross_entropy(guided, torch.tensor(wanted)[rehearsed])
        value.backward()
        optimizer.step()
    client.complete(client.train(2))
    for name, values in client.weights().items():
        np.testing.assert_allclose(values, model.state_dict()[name].numpy(), atol=3e-6, err_msg=name)


def test_training_is_unchanged_before_guidance_or_at_kd_weight_0(client_with):
    plain, rehearsing = client_with(), client_with({"kd_weight": 0.5})
    for client in (plain, rehearsing):
        client.complete(client.train(1))
    assert weights(plain) == weights(rehearsing)
    assert not any(name.startswith("rehearsed/") for name in rehearsing.state())
    for client in (plain, rehearsing):
        teach(client, 1)
    assert weights(plain) == weights(rehearsing)
    assert not any(name.startswith("rehearsed/") for name in plain.state())
    assert any(name.startswith("rehearsed/") for name in rehearsing.state())
    for client in (plain, rehearsing):
        client.complete(client.train(2))
    assert weights(plain) != weights(rehearsing)


def test_local_training_keeps_the_effect_of_distillation(client_with):
    """What a client says of the transfer set after own training stays near guidance as far as ρ says."""
    wanted = np.eye(10, dtype=np.float32)[np.arange(60) % 10] * 0.9 + 0.01
    far = []
    for rho in (0.0, 0.1, 1.0):
        client = client_with({"kd_weight": rho, "distill_epochs": 5})
        client.complete(client.learn({"targets": wanted}, 1))
        client.complete(client.train(2))
        far.append(mean_kl_divergence(client.predict(client.data.transfer_x), wanted))
    assert far[0] > far[1] > far[2], far


def test_a_restored_client_rehearses_the_same_targets(client_with):
    straight, restored = (client_with({"kd_weight": 0.5, "kd_weight_decay": 0.5}) for _ in range(2))
    straight.complete(straight.train(1))
    teach(straight, 1)
    restored.restore(straight.state())
    for client in (straight, restored):
        client.complete(client.train(4))
    assert weights(straight) == weights(restored)


@pytest.mark.parametrize("samples", [None, np.array([3, 5])])
def test_guidance_is_restored_from_its_state(samples):
    kept = LastGuidance(targets(2), samples, 3)
    again = LastGuidance.restored(kept.state())
    assert again is not None and again.round == 3 and np.array_equal(again.targets, kept.targets)
    np.testing.assert_array_equal(again.samples, samples)
    assert [again.age(round) for round in (3, 4, 5, 7)] == [0, 0, 1, 3]
    assert LastGuidance.restored({}) is None


def stream(learner: str) -> dict[str, Any]:
    tasks = {"kind": "split", "count": 2, "classes_per_task": 3}
    return {"learner": learner, "rounds_per_task": 2, "tasks": tasks}


@pytest.mark.parametrize("learner", ["naive", "ewc", "exssnet", "gpm"])
def test_learners_rehearse_targets_until_a_new_task_begins(learner, client_with):
    """What a learner makes of gradients it makes of these too: the course differs by the rehearsal alone."""
    plain, rehearsing = (
        client_with({"kd_weight": rho}, continual=stream(learner), clients=LINEAR) for rho in (0.0, 0.5)
    )
    for client in (plain, rehearsing):
        client.enter(1)
        client.complete(client.train(1))
    assert weights(plain) == weights(rehearsing)
    for client in (plain, rehearsing):
        client.complete(client.learn({"targets": np.eye(3, dtype=np.float32)[np.arange(60) % 3]}, 1))
        client.complete(client.train(2))
    assert plain.state().keys() < rehearsing.state().keys()
    assert any(not np.array_equal(values, rehearsing.state()[name]) for name, values in plain.state().items())
    rehearsing.end_task()
    rehearsing.enter(3)
    assert not any(name.startswith("rehearsed/") for name in rehearsing.state())


def test_a_learners_own_loss_gets_the_distillation_loss_added(client_with):
    client = client_with({"kd_weight": 0.5}, continual=stream("joint"), clients=LINEAR)
    client.enter(1)
    client.complete(client.learn({"targets": np.eye(3, dtype=np.float32)[np.arange(60) % 3]}, 1))
    rehearsed = client.trainer.jobs._rehearsal(client.at(2))
    assert isinstance(rehearsed, Rehearsed) and rehearsed.weight == 0.5
    job = next(iter(client.train(2)))
    samples, model = of_task(0, *client.stream.tensors(0)), client.stream.learning.model()
    batch, others = [values[:20] for values in samples], rehearsed.batches.draw()
    values = {
        name: task_batches(job, client.stream.learning, samples, None, 0, LocalLoss(rehearsed=term)).loss
        for name, term in (("with", rehearsed), ("without", None))
    }
    z, wanted = model(others[0]).double(), others[1].double()
    kl = (wanted * (wanted.clamp_min(1e-300).log() - z.log_softmax(dim=1))).sum(dim=1).mean()
    added = values["with"](model, *batch, *others) - values["without"](model, *batch)
    assert added.item() == pytest.approx(0.5 * kl.item(), rel=1e-4)


class Counting:
    """An estimator that notes what it is asked to learn."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def fit(self, X, y):
        self.told.append(("fit", len(X)))

    def distill(self, X, probabilities):
        self.told.append(("distill", len(X)))

    def predict_proba(self, X):
        return np.full((len(X), 10), 0.1)

    def state(self):
        return {"steps": np.array(len(self.told))}

    def restore(self, arrays):
        pass


def test_an_estimator_with_distill_rehearses_its_targets(client_with):
    like = client_with({"kd_weight": 0.5})
    for rho, expected in ((0.0, ["fit"]), (0.5, ["fit", "distill"])):
        model = IncrementalModel(Counting, 10)
        plan = client_with({"kd_weight": rho}).plan
        trainer = EstimatorTrainer(plan, 0, like.samples, model)
        client = Client(plan, 0, like.samples, trainer)
        teach(client, 1)
        told = model._estimator.told
        assert told == [("distill", 60)]
        client.complete(client.train(2))
        assert [what for what, _ in told[1:]] == expected


def test_a_refit_uses_private_samples_and_targets(client_with):
    """It always is; without distillation too, where guidance is rehearsed."""
    forest = {"clients": [{"model": "random-forest", "args": {"trees": 5}}], "training": {}}
    predicted = {}
    for name, fusion in {
        "distilled": {},
        "distilled and rehearsed": {"kd_weight": 0.5},
        "rehearsed alone": {"kd_weight": 0.5, "distill_epochs": 0},
        "neither": {"distill_epochs": 0},
    }.items():
        client = client_with(fusion, **forest)
        client.complete(client.train(1))
        teach(client, 1)
        client.complete(client.train(2))
        predicted[name] = client.predict(client.data.global_x).tobytes()
        restored = client_with(fusion, **forest)
        restored.restore(client.state())
        assert restored.predict(client.data.global_x).tobytes() == predicted[name]
    alike = {predicted[name] for name in predicted if name != "neither"}
    assert len(alike) == 1 and predicted["neither"] not in alike


@pytest.mark.parametrize("strategy", ["local", "centralized", "fd", "feddf", "flwr:FedAvg"])
def test_rehearsal_refuses_a_strategy_without_targets(strategy, digits_scenario):
    plan = parse_plan(digits_scenario | {"fusion": {"strategy": strategy, "kd_weight": 0.3}})
    with pytest.raises(UserError, match=f"must be 0 with '{strategy}', which has no targets"):
        build_checked_models(plan, load_data(plan.scenario))


def test_rehearsal_refuses_a_learner_that_trains_on_memory_alone(digits_scenario):
    plan = parse_plan(
        of_stream(digits_scenario)
        | {"fusion": {"strategy": "knfu", "kd_weight": 0.3}, "continual": {"learner": "gdumb"}}
    )
    with pytest.raises(UserError, match="must be 0, as 'gdumb' trains only on its buffer"):
        build_checked_models(plan, load_data(plan.scenario))
