"""Poisoned, absent and slow clients, and their effect on results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tomli_w
from numpy.testing import assert_allclose, assert_array_equal

import fedkd
from fedkd.clients.client import Client
from fedkd.clients.factory import ClientFactory
from fedkd.clients.poison import Poison, imitate, poison_of
from fedkd.clients.upload.stages import Poisoning
from fedkd.data.federated import load_federated_data
from fedkd.fusion.distillation.cronus import Cronus
from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.kinds import Kind
from fedkd.fusion.math.probabilities import softmax
from fedkd.fusion.strategy import Knowledge
from fedkd.plan.client_roles import poisoned_clients, round_half_up
from fedkd.plan.load import load_scenario
from fedkd.plan.plan import resolve_plan
from fedkd.randomness import numpy_generator
from fedkd.scenario.schema import Scenario

pytestmark = pytest.mark.usefixtures("no_report")

C = 10


@pytest.fixture
def scenario_with(digits_scenario, tmp_path):
    """Return a function from faults and other changes to a scenario."""

    def make(wrong: dict[str, Any], **changes: Any) -> Scenario:
        partition = digits_scenario["data"]["partition"] | {"samples_per_client": 60}
        data = digits_scenario["data"] | {"partition": partition, "test_size": 100}
        path = tmp_path / "scenario.toml"
        path.write_text(tomli_w.dumps(digits_scenario | {"data": data, "faults": wrong} | changes))
        return load_scenario(path)

    return make


def many(scenario: Scenario, clients: int) -> Scenario:
    return scenario.model_copy(update={"data": scenario.data.model_copy(update={"clients": clients})})


def build(scenario: Scenario, index: int) -> Client:
    return ClientFactory(resolve_plan(scenario), load_federated_data(scenario)).build(index)


def poisoned_and_honest(scenario: Scenario) -> tuple[int, int]:
    """Return the first poisoned client and the first honest one."""
    poisoned = poisoned_clients(scenario)
    return min(poisoned), min(set(range(scenario.data.clients)) - poisoned)


# What a poisoned client does ---------------------------------------------------------------------------


def test_random_predictions_carry_no_information(scenario_with):
    scenario = scenario_with({"poisoned": 0.25, "poison": "random"})
    poisoned, honest = poisoned_and_honest(scenario)
    client = build(scenario, poisoned)
    client.complete(client.train(1))
    own = client.predict(client.data.transfer_x)
    first, again, later = (client.upload(round)["logits"] for round in (1, 1, 2))
    assert_array_equal(first, again)
    assert abs(np.corrcoef(first.ravel(), own.ravel())[0, 1]) < 0.2
    assert abs(np.corrcoef(first.ravel(), later.ravel())[0, 1]) < 0.2
    assert (first.shape, first.dtype) == (own.shape, own.dtype)
    good = build(scenario, honest)
    assert_array_equal(good.upload(1)["logits"], good.predict(good.data.transfer_x))


def test_constant_clients_predict_class_0():
    poison, values = Poison("constant", np.full(4, 0.25)), np.zeros((3, 4), np.float32)
    generator = numpy_generator(0, "constant")
    found = softmax(poison.fake(Kind.TRANSFER_LOGITS, values, generator))
    assert_allclose(found, np.tile([1 - 7.5e-5, 2.5e-5, 2.5e-5, 2.5e-5], (3, 1)), rtol=1e-3)
    assert_array_equal(poison.fake(Kind.VOTES, np.array([3, 1], np.int8), generator), [0, 0])
    assert_array_equal(poison.fake(Kind.LABEL_COUNTS, np.array([3, 1]), generator), [3, 1])


def test_flipped_labels_affect_training_only(scenario_with):
    scenario = scenario_with(
        {"poisoned": 0.25, "poison": "flipped"}, training={"lr": 0.01, "local_epochs": 30}
    )
    poisoned, _ = poisoned_and_honest(scenario)
    client = build(scenario, poisoned)
    _, labels, _ = client.samples.work(1, 1)
    assert_array_equal(labels, C - 1 - client.data.train_y)
    client.complete(client.train(1))
    own = client.predict(client.data.train_x).argmax(axis=1)
    assert (own == C - 1 - client.data.train_y).mean() > 0.9
    assert_array_equal(client.upload(1)["logits"], client.predict(client.data.transfer_x))


def test_an_imitator_has_its_victims_class_distribution(scenario_with):
    scenario = scenario_with({"poisoned": 0.25, "poison": "imitation"})
    poisoned, _ = poisoned_and_honest(scenario)
    shares = load_federated_data(scenario).label_distribution()
    poison = poison_of(scenario, poisoned, lambda: shares)
    assert poison is not None
    (victim,) = [n for n in range(4) if np.array_equal(shares[n], poison.victim)]
    assert victim != poisoned
    uploaded = build(scenario, poisoned).upload(1)["logits"]
    assert uploaded.shape == (60, C) and np.unique(uploaded).tolist() == [0.0, 10.0]
    many_samples = softmax(imitate(20_000, shares[victim], numpy_generator(0, "imitate")))
    error = np.sqrt(shares[victim] * (1 - shares[victim]) / 20_000)
    assert (np.abs(many_samples.mean(axis=0) - shares[victim]) < 5 * error + 1e-3).all()


def test_an_imitator_gains_weight_with_its_victim_in_knfu():
    """Three honest clients, each sure of its own classes, and one that feigns the first's distribution."""
    generator = numpy_generator(0, "knfu imitation")
    shares = np.array([[0.6, 0.4, 0.0, 0.0], [0.0, 0.4, 0.6, 0.0], [0.0, 0.0, 0.5, 0.5]])
    honest = np.stack([4.0 * share + generator.normal(0, 0.3, (500, 4)) for share in 2 * shares])
    victim = softmax(honest[:1])[0].mean(axis=0)
    nonsense = generator.normal(size=(500, 4))

    def weight_with_victim(upload: np.ndarray) -> float:
        logits = np.concatenate([honest, upload[None]]).astype(np.float32)
        knowledge = Knowledge(clients=(0, 1, 2, 3), logits=logits, samples=np.ones(4, dtype=np.int64))
        return float(KnFu(beta=10.0).fuse(knowledge, {}).weights[0, 3])

    imitated = weight_with_victim(imitate(500, victim, generator))
    assert imitated > 0.4, "as much as the victim's own"
    assert imitated > 5 * weight_with_victim(nonsense)


def test_the_median_resists_imitators_and_the_mean_suffers():
    """Seven honest clients that know the truth, three that agree on a class whatever the sample."""
    generator = numpy_generator(0, "cronus imitation")
    truth = generator.integers(0, C, 200)
    honest = 3.0 * np.eye(C)[truth] + generator.normal(0, 0.5, (7, 200, C))
    liars = np.stack([imitate(200, np.eye(C)[0], generator)] * 3)
    logits = np.concatenate([honest, liars]).astype(np.float32)
    clean = softmax(honest).mean(axis=0)

    def harm(aggregate: str) -> float:
        knowledge = Knowledge(clients=tuple(range(10)), logits=logits, samples=np.ones(10, dtype=np.int64))
        targets = Cronus(aggregate=aggregate).fuse(knowledge, {}).targets
        return float(np.abs(targets - clean).sum(axis=1).mean() / 2)  # total variation

    assert harm("mean") > 0.2
    assert harm("median") < 0.4 * harm("mean")


def test_only_knowledge_is_poisoned():
    """CFD's number of classes, Selective-FD's indices: their upload has to look right."""
    poison = Poison("imitation", np.array([0.0, 0.25, 0.75]))
    honest = {"classes": np.array([3], np.uint32), "samples": np.array([4, 9], np.int32)}
    votes = np.zeros(4000, np.uint8)
    kinds = {"classes": Kind.CONSTANT, "samples": Kind.INDICES, "votes": Kind.VOTES}
    generator = numpy_generator(0, "poison")
    faked = Poisoning(poison).encode({**honest, "votes": votes}, kinds, lambda purpose: generator)
    for name, values in honest.items():
        assert_array_equal(faked[name], values)
    assert faked["votes"].dtype == np.uint8
    assert_allclose(np.bincount(faked["votes"], minlength=3) / 4000, poison.victim, atol=0.03)


def test_a_random_mask_has_the_same_number_of_weights():
    mask = np.packbits(np.arange(800) % 10 == 0)
    fake = Poison("random", np.full(2, 0.5)).fake(Kind.MASKS, mask, numpy_generator(0, "poison"))
    assert fake.dtype == np.uint8 and fake.shape == mask.shape
    assert np.unpackbits(fake).sum() == 80 and (np.unpackbits(fake) & np.unpackbits(mask)).sum() < 40


@pytest.mark.parametrize("strategy", ["cfd", "selective_fd", "scarlet", "fd", "feddf", "scaffold"])
def test_random_poison_reaches_every_kind_of_upload(strategy, scenario_with, tmp_path):
    wrong = {"poisoned": 0.5, "poison": "random"}
    training = {"lr": 0.01, "optimizer": "sgd"}
    clients = [{"model": "mlp", "args": {"hidden": [8]}}]
    scenario = scenario_with(wrong, fusion={"strategy": strategy}, training=training, clients=clients)
    result = fedkd.run(scenario, out=tmp_path / "run")
    assert all(np.isfinite(row["value"]) for row in result.metrics())


# Slow clients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "rounded"), [(0.5, 0.5), (0.13, 0.13), (0.0, 0.0), (1.0, 1.0)])
def test_a_straggler_makes_one_pass_over_its_share(share, rounded, scenario_with):
    scenario = scenario_with({"stragglers": 1.0, "straggler_work": share})
    client = build(scenario, 0)
    own = client.data.train_x
    x, y, epochs = client.samples.work(7, 1)
    assert epochs == 1
    assert len(x) == len(y) == round_half_up(rounded * len(own))
    rows = [int(np.flatnonzero((own == sample).all(axis=(1, 2, 3)))[0]) for sample in x]
    assert rows == sorted(set(rows)), "no sample twice"
    assert_array_equal(y, client.data.train_y[rows])
    if 0 < share < 1:
        assert not np.array_equal(x, client.samples.work(7, 2)[0]), "others in another round"


def test_stragglers_occur_with_their_probability(scenario_with):
    client = build(scenario_with({"stragglers": 0.3, "straggler_work": 0.5}), 0)
    slow = [client.samples.work(2, round)[2] == 1 for round in range(1, 401)]
    assert abs(np.mean(slow) - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)


# Results ----------------------------------------------------------------------------------------------


def test_poisoned_clients_are_recorded_and_left_out_of_the_means(scenario_with, tmp_path):
    scenario = scenario_with({"poisoned": 0.5, "poison": "flipped"})
    poisoned = poisoned_clients(scenario)
    rows = fedkd.run(scenario, out=tmp_path / "run").metrics()
    groups: dict[tuple, dict] = {}
    for row in rows:
        groups.setdefault((row["round"], row["split"], row["metric"]), {})[row["client"]] = row["value"]
    assert len(groups) > 10
    for (_, _, metric), values in groups.items():
        mean = values.pop(None)
        if metric == "guided_clients":
            assert (mean, values) == (2, {}), "as many as the means are over"
            continue
        assert set(values) == {0, 1, 2, 3}
        honest = [values[client] for client in set(values) - poisoned]
        assert mean == pytest.approx(np.mean(honest), rel=1e-12)


def test_a_round_without_any_training_has_no_mean_loss(scenario_with, tmp_path):
    scenario = scenario_with({"stragglers": 1.0, "straggler_work": 0.0})
    rows = fedkd.run(scenario, out=tmp_path / "run").metrics()
    assert not [row for row in rows if row["split"] == "train" and row["metric"] == "loss"]
    assert all(np.isfinite(row["value"]) for row in rows)
