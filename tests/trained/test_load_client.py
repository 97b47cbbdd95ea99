"""Loaded clients reproduce the answers of their run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import fedkd
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.plan.load import parse_plan

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(scope="module")
def mixed(make_digits_scenario, tmp_path_factory):
    """Two networks and two forests that learn from each other."""
    tables = make_digits_scenario() | {
        "clients": [{"model": "mlp"}, {"model": "random-forest", "args": {"trees": 5}}],
    }
    return fedkd.run(tables, out=tmp_path_factory.mktemp("mixed") / "run")


def counted(result, client: int, split: str, task: int | None = None) -> float:
    rows = [
        row["value"]
        for row in result.metrics()
        if (row["client"], row["split"], row["metric"]) == (client, split, "accuracy")
    ]
    return rows[-1]


@pytest.mark.parametrize("index", range(4))
def test_a_loaded_client_reproduces_the_recorded_accuracy(mixed, index):
    client = fedkd.load_client(mixed.folder, index)
    data = load_data(parse_plan({**_tables(mixed)}).scenario)
    own = data.client(index)
    assert (client.index, client.round, client.task, client.tasks) == (index, 2, None, ())
    assert client.classes == data.class_names and client.architecture in ("mlp", "random-forest")
    for split, x, y in (("local", own.test_x, own.test_y), ("global", own.global_x, own.global_y)):
        stored = x * client.normalisation.std + client.normalisation.mean  # as the data set has them
        # A tree's threshold may lie between a sample and what rounding makes of it.
        assert np.mean(client.predict(stored) == y) == pytest.approx(counted(mixed, index, split), abs=0.005)


def _tables(result) -> dict:
    from fedkd.scenario.load import read_toml

    return read_toml(result.folder / "scenario.toml")


def test_the_module_maps_normalised_samples_to_the_logits(mixed):
    client = fedkd.load_client(mixed.folder, 0)
    x = load_digits().images[:7, None].astype(np.float64)
    assert not client.model.training
    with torch.no_grad():
        expected = client.model(torch.from_numpy(client.normalise(x))).numpy()
    np.testing.assert_array_equal(client.logits(x), expected)
    shares = client.probabilities(x)
    np.testing.assert_allclose(shares, torch.from_numpy(expected).softmax(1).numpy(), rtol=1e-5)
    assert client.predict(x[:0]).shape == (0,) and client.probabilities(x[:0]).shape == (0, 10)


def test_a_loaded_estimator_is_the_fitted_one(mixed):
    forest = fedkd.load_client(mixed.folder, 1).model
    assert type(forest).__name__ == "RandomForestClassifier" and len(forest.estimators_) == 5


def test_an_earlier_saved_round_can_be_loaded(mixed):
    first, last = (fedkd.load_client(mixed.folder, 0, round=round) for round in (1, 2))
    assert first.round == 1 and last.round == 2
    assert any(
        not torch.equal(one, other)
        for one, other in zip(first.model.parameters(), last.model.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("index", "options", "told"),
    [
        (4, {}, "no client 4; the run has 0 to 3"),
        (-1, {}, "no client -1"),
        ("0", {}, "no client '0'"),
        (0, {"round": 3}, "no checkpoint of round 3; choose one of 1, 2"),
    ],
)
def test_missing_clients_and_rounds_are_refused(mixed, index, options, told):
    with pytest.raises(UserError, match=told):
        fedkd.load_client(mixed.folder, index, **options)


def test_wrong_sample_shapes_and_tasks_are_refused(mixed):
    client = fedkd.load_client(mixed.folder, 0)
    with pytest.raises(UserError, match=r"samples must have shape \[n, 1, 8, 8\], got \[3, 64\]"):
        client.predict(np.zeros((3, 64)))
    with pytest.raises(UserError, match="no stream of tasks"):
        client.of_task(0)


def test_folders_without_a_trained_client_are_refused(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        fedkd.load_client(tmp_path, 0)
    (tmp_path / "scenario.toml").write_text("rounds = 1\n")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        fedkd.load_client(tmp_path, 0)
    with pytest.raises(UserError, match="the run folder must be a path, got "):
        fedkd.load_client(3, 0)


def test_a_damaged_client_is_reported(make_digits_scenario, tmp_path):
    result = fedkd.run(make_digits_scenario() | {"rounds": 1}, out=tmp_path / "run")
    (path,) = (result.folder / "checkpoints").rglob("client-00002*.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    fedkd.load_client(result.folder, 1)
    with pytest.raises(UserError, match="the checkpoint is damaged: client-00002"):
        fedkd.load_client(result.folder, 2)


def test_averaging_gives_every_client_the_average(make_digits_scenario, tmp_path):
    tables = make_digits_scenario() | {"fusion": {"strategy": "flwr:FedAvg"}}
    del tables["data"]["transfer"]
    result = fedkd.run(tables, out=tmp_path / "run")
    clients = [fedkd.load_client(result.folder, index) for index in (0, 3)]
    for one, other in zip(*(client.model.parameters() for client in clients), strict=True):
        assert torch.equal(one, other)
    data = load_data(parse_plan(_tables(result)).scenario)
    x = data.test_x * clients[0].normalisation.std + clients[0].normalisation.mean
    assert np.mean(clients[0].predict(x) == data.test_y) == pytest.approx(counted(result, 3, "global"))


STREAMS = {
    "masks": {"learner": "exssnet", "density": 0.5, "mask_lr": 0.01, "head": "task"},
    "superfluous outputs": {"learner": "supsup", "head": "task", "objective": "superfluous"},
    "exemplars": {"learner": "icarl", "memory_size": 20, "head": "class"},
    "one head": {"learner": "naive", "head": "domain", "tasks": {"kind": "permuted", "count": 2}},
}


@pytest.mark.parametrize("kind", STREAMS)
def test_every_task_reproduces_the_recorded_accuracy(kind, make_digits_scenario, tmp_path):
    tables = make_digits_scenario() | {"fusion": {"strategy": "fedmd"}, "continual": STREAMS[kind]}
    tables["continual"] = {"tasks": {"kind": "split", "count": 2}} | tables["continual"]
    tables["data"] |= {"clients": 2, "partition": {"scheme": "iid", "samples_per_client": 40}}
    del tables["rounds"]
    result = fedkd.run(tables, out=tmp_path / "run")
    stream = load_data(parse_plan(_tables(result)).scenario)
    client = fedkd.load_client(result.folder, 1)
    assert (client.tasks, client.task) == ((0, 1), 1)
    rows = {
        row["task"]: row["value"]
        for row in result.metrics()
        if (row["client"], row["split"], row["metric"]) == (1, "global", "accuracy_task_incremental")
        and row["round"] == 2
    }
    for task in stream:
        of_task = client.of_task(task.index)
        assert (of_task.task, of_task.task_name) == (task.index, task.name)
        x = task.data.test_x * of_task.normalisation.std + of_task.normalisation.mean
        answers = of_task.logits(x)
        own = [task.units.index(unit) for unit in task.own_units]  # as accuracy with the task given asks
        found = np.array(own)[answers[:, own].argmax(axis=1)]
        assert np.mean(found == task.data.test_y) == pytest.approx(rows[task.index])
        if kind != "exemplars":
            with torch.no_grad():
                outputs = of_task.model(torch.from_numpy(of_task.normalise(x))).numpy()
            np.testing.assert_allclose(outputs, answers, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match=r"client 1 has not learned task 7; choose one of 0, 1"):
        client.of_task(7)
