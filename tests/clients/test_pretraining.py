"""Pretraining on the labelled transfer set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from stopping import StopInRound

import fedkd
from fedkd.clients.client import Client
from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.errors import Interrupted, UserError
from fedkd.models.build import build_group_models
from fedkd.plan.checks.requirements import check_requirements
from fedkd.plan.load import parse_plan, parse_scenario

pytestmark = pytest.mark.usefixtures("no_report")

MLP = {"model": "mlp", "args": {"hidden": [16]}}
STREAM = {"learner": "naive", "tasks": {"kind": "permuted", "count": 2}}


@pytest.fixture
def tables(digits_scenario) -> dict[str, Any]:
    return digits_scenario | {"clients": [MLP], "fusion": {"strategy": "fedmd", "pretrain_epochs": 20}}


def client_of(tables: dict[str, Any], index: int = 0) -> Client:
    plan = parse_plan(tables)
    return ClientFactory(plan, load_data(plan.scenario)).build(index)


def test_pretraining_minimises_cross_entropy_on_the_transfer_set(tables):
    """One full batch of plain SGD, beside softmax regression worked out by hand."""
    tables["fusion"]["pretrain_epochs"] = 1
    tables["training"] = {"optimizer": "sgd", "lr": 0.5, "batch_size": 60}
    tables["clients"] = [{"model": "mlp", "args": {"hidden": []}}]
    client, data = client_of(tables), load_data(parse_scenario(tables))
    start = {name: values.astype(np.float64) for name, values in client.weights().items()}
    client.complete(client.trainer.pretrain())
    (weight, bias) = sorted(start, key=lambda name: -start[name].ndim)
    x = data.transfer_x.reshape(60, -1).astype(np.float64)
    z = x @ start[weight].T + start[bias]
    q = np.exp(z - z.max(axis=1, keepdims=True))
    error = q / q.sum(axis=1, keepdims=True) - np.eye(10)[data.transfer_y]
    assert_allclose(client.weights()[weight], start[weight] - 0.5 * error.T @ x / 60, atol=1e-5)
    assert_allclose(client.weights()[bias], start[bias] - 0.5 * error.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("first", ["training", "guidance"])
def test_pretraining_comes_first_and_once(tables, first):
    client, alone = client_of(tables), client_of(tables)
    targets = {"targets": np.zeros((60, 10), dtype=np.float32)}

    def begin(one: Client) -> None:
        one.complete(one.train(1) if first == "training" else one.learn(targets, 1))

    begin(client)
    alone.complete(alone.trainer.pretrain())
    begin(alone)
    for name, values in alone.weights().items():
        assert_array_equal(client.weights()[name], values)
    state = client.state()
    restored = client_of(tables)
    restored.restore(state)
    for one in (client, restored):
        one.complete(one.trainer.pretrain())
        assert_array_equal(one.weights()[name], values)


def test_transfer_labels_serve_pretraining_only(tables):
    assert client_of(tables).data.public_y is not None
    assert client_of(tables | {"fusion": {"strategy": "fedmd"}}).data.public_y is None


def test_labels_of_another_data_set_can_pretrain(tables, tmp_path):
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    y = np.arange(60) % 10
    np.savez(tmp_path / "other.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    source = {"source": "npz", "args": {"path": str(tmp_path / "other.npz")}, "size": 60}
    tables["data"] = tables["data"] | {"transfer": source}
    tables["fusion"]["pretrain_epochs"] = 200
    client = client_of(tables)
    client.complete(client.trainer.pretrain())
    assert (client.predict(client.data.transfer_x).argmax(axis=1) == client.data.public_y).mean() > 0.9
    assert_array_equal(np.bincount(client.data.public_y), 6)


def test_a_pretrained_run_begins_better_and_resumes_byte_for_byte(tables, tmp_path):
    tables |= {"rounds": 3, "clients_per_round": 3}

    def accuracy(changes: dict[str, Any], name: str) -> float:
        result = fedkd.run(parse_scenario(tables | changes), out=tmp_path / name)
        first = [row for row in result.metrics() if row["round"] == 1 and row["client"] is None]
        (found,) = [
            r["value"] for r in first if (r["split"], r["metric"]) == ("global", "accuracy_before_fusion")
        ]
        return found

    assert accuracy({}, "pretrained") > accuracy({"fusion": {"strategy": "fedmd"}}, "not") + 0.1
    with pytest.raises(Interrupted):
        fedkd.run(parse_scenario(tables), out=tmp_path / "stopped", observers=[StopInRound(1)])
    fedkd.resume(tmp_path / "stopped")
    runs = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("pretrained", "stopped")]
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"transfer": {"source": "noise", "size": 60}}}, "without a labelled transfer set.*'noise'"),
        (
            {"clients": [MLP, {"model": "random-forest"}]},
            "must be 0, as model 'random-forest' is not a network",
        ),
        ({"continual": STREAM, "rounds": None}, "must be 0 in a stream of tasks, got 20"),
    ],
)
def test_impossible_pretraining_is_refused_in_one_line(tables, changes, message):
    changes = changes | {"data": tables["data"] | changes.get("data", {})}
    tables = {key: value for key, value in (tables | changes).items() if value is not None}
    with pytest.raises(UserError, match=message) as caught:
        refuse(tables)
    assert caught.value.key == "fusion.pretrain_epochs" and "\n" not in caught.value.message


def test_more_transfer_labels_than_outputs_are_refused(tables, tmp_path):
    x, y = np.zeros((60, 1, 8, 8), dtype=np.uint8), np.arange(60) % 12
    x[:, 0, 0, 0] = np.arange(60)
    np.savez(tmp_path / "more.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    source = {"source": "npz", "args": {"path": str(tmp_path / "more.npz")}, "size": 60}
    tables["data"] = tables["data"] | {"transfer": source}
    with pytest.raises(
        UserError, match="labels of 'npz' go up to 11, but the clients' models have 10 outputs"
    ):
        refuse(tables)


def refuse(tables: dict[str, Any]) -> None:
    plan = parse_plan(tables)
    data = load_data(plan.scenario)
    outputs = data.outputs if plan.learner is not None else data.classes
    check_requirements(plan, data, build_group_models(plan.scenario, data.input_shape, outputs))
