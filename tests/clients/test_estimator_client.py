"""Estimator clients learn, resume and refuse unsupported settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from stopping import StopInRound

import fedkd
from fedkd.cli import main as cli
from fedkd.clients.client import Client
from fedkd.clients.factory import ClientFactory
from fedkd.clients.local.estimator_trainer import EstimatorTrainer
from fedkd.data.federated import load_federated_data
from fedkd.errors import Interrupted
from fedkd.fusion.math.fidelity import agreement
from fedkd.models.estimator import IncrementalModel
from fedkd.plan.load import load_plan, load_scenario

pytestmark = pytest.mark.usefixtures("no_report")

MLP = {"model": "mlp", "args": {"hidden": [16]}}
GROUPS: dict[str, dict[str, Any]] = {
    "forest": {"model": "random-forest", "args": {"trees": 10}},
    "boosting": {"model": "gradient-boosting", "args": {"iterations": 3}},
    "sgd": {"model": "sgd"},
    "by reference": {"model": "sklearn.ensemble:RandomForestClassifier", "args": {"n_estimators": 5}},
    "no weights": {"model": "sklearn.neighbors:KNeighborsClassifier", "args": {"n_neighbors": 3}},
    "plug-in": {"model": "mine:Shares", "args": {"smoothing": 0.5}},
    "distill": {"model": "mine:Centroids"},
}
PLUGIN = '''
import numpy as np


class Shares:
    """Predicts the share of every class among what it was fitted on."""

    def __init__(self, smoothing=1.0):
        self.smoothing = smoothing

    def fit(self, X, y, sample_weight=None):
        self.counts = np.bincount(y, sample_weight, minlength=10) + self.smoothing

    def predict_proba(self, X):
        return np.tile(self.counts / self.counts.sum(), (len(X), 1))


class Centroids:
    """Running class means, moved by samples and by guidance alike."""

    def __init__(self):
        self.means = None

    def _move(self, X, weights):
        share = weights.sum(axis=0)[:, None]
        means = weights.T @ X / np.maximum(share, 1e-9)
        before = np.zeros_like(means) if self.means is None else self.means
        self.means = np.where(share > 0, 0.5 * before + 0.5 * means, before)

    def fit(self, X, y):
        self._move(X, np.eye(10)[y])

    def distill(self, X, probabilities):
        self._move(X, probabilities)

    def predict_logits(self, X):
        return -((X[:, None] - self.means[None]) ** 2).sum(axis=-1)

    def state(self):
        return {"means": self.means}

    def restore(self, arrays):
        self.means = np.array(arrays["means"])


class Forgetful(Centroids):
    state = None
'''


@pytest.fixture
def tables(digits_scenario) -> dict[str, Any]:
    partition = digits_scenario["data"]["partition"] | {"samples_per_client": 60}
    return digits_scenario | {"data": digits_scenario["data"] | {"partition": partition, "test_size": 100}}


def write(folder: Path, tables: dict[str, Any], **changes: Any) -> Path:
    (folder / "mine.py").write_text(PLUGIN)
    path = folder / "scenario.toml"
    if MLP not in changes.get("clients", [MLP]):
        changes |= {"training": {}}  # what is in it is for networks
    path.write_text(tomli_w.dumps(tables | changes))
    return path


def client_of(path: Path, index: int = 0, *overrides: str) -> Client:
    plan = load_plan(path, overrides)
    client = ClientFactory(plan, load_federated_data(plan.scenario)).build(index)
    assert isinstance(client.trainer, EstimatorTrainer)
    return client


def uniform_targets(client: Client, label: int) -> np.ndarray:
    return np.tile(np.eye(10, dtype=np.float32)[label], (len(client.data.transfer_x), 1))


@pytest.mark.parametrize("kind", GROUPS)
def test_an_estimator_beside_a_network_learns_and_resumes_byte_for_byte(kind, tables, tmp_path):
    faults = {"stragglers": 0.5, "poisoned": 0.25, "poison": "flipped"}
    changes = {"rounds": 3, "clients": [MLP, GROUPS[kind]], "faults": faults, "evaluate_every": 2}
    path = write(tmp_path, tables, **changes)
    unbroken = fedkd.run(load_scenario(path), out=tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        fedkd.run(load_scenario(path), out=tmp_path / "stopped", observers=[StopInRound(2)])
    fedkd.resume(tmp_path / "stopped")
    expected = (unbroken.folder / "metrics.jsonl").read_bytes()
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == expected
    rows = [row for row in unbroken.metrics() if row["metric"] == "accuracy" and row["round"] == 3]
    assert {row["client"] for row in rows} == {None, 0, 1, 2, 3}
    assert all(np.isfinite(row["value"]) for row in unbroken.metrics())


@pytest.mark.parametrize("kind", [kind for kind in GROUPS if kind != "plug-in"])
def test_an_estimator_follows_its_guidance(kind, tables, tmp_path):
    client = client_of(write(tmp_path, tables, clients=[GROUPS[kind]]))
    client.complete(client.train(1))
    truth = load_federated_data(load_scenario(tmp_path / "scenario.toml")).transfer_y
    targets = np.eye(10, dtype=np.float32)[truth]
    before = agreement(client.predict(client.data.transfer_x), targets)
    client.evaluator.measure_before_fusion(1)
    client.complete(client.learn({"targets": targets}, 1))
    after = agreement(client.predict(client.data.transfer_x), targets)
    assert after > before
    assert client.evaluator.fidelity(1, client.evaluator.evaluate("global"))["agreement"] == after
    again = client.predict(client.data.transfer_x).tobytes()
    client.complete(client.learn({"targets": uniform_targets(client, 3)}, 1))
    assert client.predict(client.data.transfer_x).tobytes() == again, "guidance of a round is learned once"


def test_targets_for_some_samples_reach_their_rows(tables, tmp_path):
    client = client_of(write(tmp_path, tables, clients=[GROUPS["forest"]]))
    client.complete(client.train(1))
    before = client.predict(client.data.global_x).tobytes()
    nothing = {"targets": np.empty((0, 10), np.float32), "samples": np.empty(0, np.int32)}
    client.complete(client.learn(nothing, 1))
    assert client.predict(client.data.global_x).tobytes() == before, "nothing to learn"
    rows = np.array([4, 17], np.int32)
    client.complete(client.learn({"targets": uniform_targets(client, 3)[:2], "samples": rows}, 2))
    assert client.predict(client.data.transfer_x[rows]).argmax(axis=1).tolist() == [3, 3]


def test_stragglers_and_poisoned_clients_behave_the_same_after_guidance(tables, tmp_path):
    """A refit for the sake of guidance must not see what the training did not."""
    faults = {"stragglers": 1.0, "straggler_work": 0.5, "poisoned": 1.0, "poison": "flipped"}
    client = client_of(write(tmp_path, tables, clients=[GROUPS["plug-in"]], faults=faults))
    x, y, _ = client.samples.work(1, 1)
    assert len(y) == round(len(client.data.train_y) / 2)
    client.complete(client.train(1))
    client.complete(client.learn({"targets": uniform_targets(client, 3)}, 1))
    counts = np.bincount(y, minlength=10) + 0.5
    counts[3] += len(client.data.transfer_x)
    predicted = np.exp(client.predict(client.data.global_x[:1])[0])
    np.testing.assert_allclose(predicted, counts / counts.sum(), rtol=1e-5)
    restored = client_of(tmp_path / "scenario.toml")
    restored.restore(client.state())
    np.testing.assert_array_equal(restored.predict(x), client.predict(x))


def test_an_estimator_learns_from_a_shard_of_one_class(tables, tmp_path):
    changes = {
        "data": tables["data"] | {"partition": {"scheme": "shards", "shards_per_client": 1}, "clients": 10},
        "clients": [MLP, GROUPS["boosting"]],
    }
    path = write(tmp_path, tables, **changes)
    data = load_federated_data(load_scenario(path))
    assert min(len(np.unique(data.client(n).train_y)) for n in range(10)) == 1
    result = fedkd.run(load_scenario(path), out=tmp_path / "run")
    assert all(np.isfinite(row["value"]) for row in result.metrics())


def test_an_estimator_with_distill_is_handled_by_its_own_adapter(tables, tmp_path):
    client = client_of(write(tmp_path, tables, clients=[GROUPS["distill"]]))
    assert isinstance(client.trainer.model, IncrementalModel)
    client.complete(client.train(1))
    kept = {"model/own/means", "model/trained_round"}
    assert set(client.state()) == {"applied_round", "effect/trained"} | kept


# What is refused --------------------------------------------------------------------------------------

REFUSED = {
    "weights": ({"strategy": "feddf"}, GROUPS["forest"], "'feddf' exchanges weights.*'random-forest'"),
    "averages": ({"strategy": "scaffold"}, GROUPS["sgd"], "'scaffold' exchanges weights.*'sgd'"),
    "flower": ({"strategy": "flwr:FedAvg"}, GROUPS["sgd"], "'flwr:FedAvg' exchanges weights.*'sgd'"),
    "features": ({"strategy": "fedproto"}, GROUPS["boosting"], "'fedproto' .*'gradient-boosting' is not"),
    "gradients": ({"strategy": "fd"}, GROUPS["plug-in"], "'fd' trains by gradients.*'mine:Shares'"),
    "no state": ({"strategy": "knfu"}, {"model": "mine:Forgetful"}, "`distill` and without `state`"),
    "no probabilities": (
        {"strategy": "knfu"},
        {"model": "sklearn.svm:LinearSVC"},
        "LinearSVC.*without `predict_proba`|factory",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("word", ["check", "run"])
def test_unsupported_uses_are_refused_in_one_line(word, case, tables, tmp_path, capsys):
    fusion, group, message = REFUSED[case]
    path = write(tmp_path, tables, fusion=fusion, clients=[group])
    options = ["--out", str(tmp_path / "out"), "--quiet"] if word == "run" else []
    assert cli.main([word, str(path), *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()
