"""`centralized`: one model of each architecture on all samples, the same in every process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from flwr.app import Context, RecordDict
from stopping import StopInRound
from torch.nn.functional import cross_entropy

import fedkd
from fedkd.cli.main import main
from fedkd.clients.factory import ClientFactory
from fedkd.clients.local.centralized_trainer import CentralizedModel, all_samples_of, first_alike
from fedkd.data.federated import load_federated_data
from fedkd.errors import Interrupted, UserError
from fedkd.federation.apps.context import client_behind
from fedkd.models.build import build_model
from fedkd.plan.client_roles import poisoned_clients
from fedkd.plan.load import load_plan, load_scenario
from fedkd.randomness import derive_seed, torch_generator
from fedkd.scenario.schema import ClientGroup

pytestmark = pytest.mark.usefixtures("no_report")

SMALL = {"model": "mlp", "args": {"hidden": [12]}}
WIDE = {"model": "mlp", "args": {"hidden": [20], "dropout": 0.2}}


@pytest.fixture
def write(digits_scenario, tmp_path):
    """Return a function from changes of the tables to the path of a pooled scenario of two architectures."""

    def make(**changes: Any) -> Path:
        tables = digits_scenario | {
            "rounds": 3,
            "clients": [SMALL, WIDE],
            "fusion": {"strategy": "centralized"},
        }
        path = tmp_path / "scenario.toml"
        path.write_text(tomli_w.dumps(tables | changes))
        return path

    return make


def factory_of(path: Path) -> ClientFactory:
    plan = load_plan(path)
    return ClientFactory(plan, load_federated_data(plan.scenario))


def accuracies(path: Path, out: Path) -> dict[tuple[Any, ...], float]:
    rows = fedkd.run(load_scenario(path), out=out).metrics()
    return {(r["round"], r["client"], r["split"]): r["value"] for r in rows if r["metric"] == "accuracy"}


# What it is -------------------------------------------------------------------------------------------


def test_centralized_training_uses_all_shards_together(write):
    clients = factory_of(write(training={"lr": 0.01, "batch_size": 20, "local_epochs": 2}))
    built = [clients.build(n) for n in range(4)]
    for round in (1, 2):
        losses = [client.complete(client.train(round)) for client in built]
    data, plan = clients.data, clients.plan
    x = torch.from_numpy(np.concatenate([data.client(n).train_x for n in range(4)]))
    y = torch.from_numpy(np.concatenate([data.client(n).train_y for n in range(4)]))
    for first in (0, 1):
        seed = derive_seed(7, "initial-weights", client=first)
        model = build_model(plan.groups[first], data.input_shape, 10, seed=seed)
        for round in (1, 2):
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
            batches = torch_generator(7, "train-batches", client=first, round=round)
            torch.manual_seed(derive_seed(7, "train", client=first, round=round))
            total = 0.0
            for _ in range(2):
                order = torch.randperm(len(y), generator=batches)
                for batch in order.split(20):
                    loss = cross_entropy(model(x[batch]), y[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += loss.item() * len(batch)
        for client in (first, first + 2):
            for name, values in built[client].weights().items():
                np.testing.assert_allclose(values, model.state_dict()[name].numpy(), atol=1e-6)
            assert losses[client] == pytest.approx(total / (2 * len(y)), abs=1e-5)


def test_clients_of_one_architecture_are_one_model_that_is_trained_once(write, monkeypatch):
    trained = []
    job = CentralizedModel._job
    monkeypatch.setattr(
        CentralizedModel, "_job", lambda model, r: trained.append((model._first, r)) or job(model, r)
    )
    clients = [client for factory in [factory_of(write())] for client in map(factory.build, range(4))]
    assert clients[0].network() is clients[2].network() and clients[1].network() is clients[3].network()
    assert clients[0].network() is not clients[1].network() and all(
        client.workplace is not client for client in clients
    )
    for client in clients:
        client.complete(client.train(1))
        client.evaluator.evaluate_after_fusion("global", 1)
    assert trained == [(0, 1), (1, 1)]
    assert [client.num_train_samples for client in clients] == [len(c.data.train_y) for c in clients]


def test_architectures_differ_by_name_and_arguments():
    groups = [ClientGroup(**table) for table in (SMALL, WIDE, SMALL | {"share": 3}, {"model": "lenet"})]
    assert [first_alike(groups, n) for n in range(4)] == [0, 1, 0, 3]


def test_a_centralized_run_with_one_client_equals_local_training(write, digits_scenario, tmp_path):
    one = {"data": digits_scenario["data"] | {"clients": 1}, "clients": [WIDE]}
    pooled = fedkd.run(load_scenario(write(**one)), out=tmp_path / "centralized")
    local = fedkd.run(load_scenario(write(**one, fusion={"strategy": "local"})), out=tmp_path / "local")
    assert list(pooled.metrics()) == list(local.metrics())


def test_centralized_training_needs_no_transfer_set_and_sends_nothing(
    write, digits_scenario, tmp_path, capsys
):
    path = write(data=digits_scenario["data"] | {"transfer": {"size": 0}}, rounds=1)
    assert main(["check", str(path)]) == 0
    traffic = [line for line in capsys.readouterr().out.splitlines() if line.startswith("traffic")]
    assert len(traffic) == 1 and traffic[0].split()[1:] == ["none"]
    final = fedkd.run(load_scenario(path), out=tmp_path / "run").summary["final"]
    assert (final["bytes_up"], final["bytes_down"]) == (0, 0)


# Whoever asks, where and when -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"clients_per_round": 1}, {"faults": {"dropout": 0.9}}, {"faults": {"stragglers": 1.0}}],
    ids=lambda changes: next(iter(changes)),
)
def test_participation_makes_no_difference(changes, write, tmp_path):
    assert accuracies(write(**changes), tmp_path / "few") == accuracies(write(), tmp_path / "all")


def test_evaluation_frequency_makes_no_difference(write, tmp_path):
    every = accuracies(write(clients_per_round=1), tmp_path / "every")
    last = accuracies(write(clients_per_round=1, evaluate_every=3), tmp_path / "last")
    assert last and last == {key: value for key, value in every.items() if key[0] == 3}


@pytest.mark.parametrize("round", [1, 2])
def test_a_stopped_run_resumes_to_the_same_result(round, write, tmp_path):
    path = write(clients_per_round=1, evaluate_every=2)  # one state is saved, others are as they were
    unbroken = fedkd.run(load_scenario(path), out=tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        fedkd.run(load_scenario(path), out=tmp_path / "stopped", observers=[StopInRound(round)])
    fedkd.resume(tmp_path / "stopped")
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in (unbroken.folder, tmp_path / "stopped")]
    assert metrics[0] == metrics[1]


def test_every_clients_state_holds_the_whole_model(write):
    path = write(clients=[WIDE])
    one, other = factory_of(path).build(1), factory_of(path).build(3)
    loss = one.complete(one.train(2))
    other.restore(one.state())
    for name, values in one.weights().items():
        np.testing.assert_array_equal(values, other.weights()[name])
    assert other.complete(other.train(2)) == loss, "it is told, not trained for once more"
    assert other.complete(other.train(3)) == one.complete(one.train(3))


def test_an_older_state_resets_training_only_for_an_earlier_round(write):
    client, twin = (factory_of(write()).build(0) for _ in range(2))
    early = client.state()
    losses = [client.complete(client.train(round)) for round in (1, 2)]
    client.restore(early)
    assert client.complete(client.train(2)) == losses[1]
    assert client.complete(client.train(1)) == losses[0] == twin.complete(twin.train(1))
    assert (
        client.evaluator.evaluate_after_fusion("local", 1).loss
        == twin.evaluator.evaluate_after_fusion("local", 1).loss
    )


def test_a_client_rebuilt_for_every_message_gives_the_same_result(write):
    """As on Flower's runtimes, where a process keeps its models from one run to the next."""
    path = write()
    lasting = [client for factory in [factory_of(path)] for client in map(factory.build, range(4))]
    expected = [client.complete(client.train(round)) for round in (1, 2) for client in lasting]
    for _ in range(2):
        contexts = [
            Context(1, n, {"partition-id": n}, RecordDict(), {"scenario": str(path)}) for n in range(4)
        ]
        losses = []
        for round in (1, 2):
            for context in contexts:
                with client_behind(context) as client:
                    losses.append(client.complete(client.train(round)))
        assert losses == expected


# Faults and refusals ----------------------------------------------------------------------------------


def test_centralized_training_includes_flipped_labels(write):
    path = write(faults={"poisoned": 0.5, "poison": "flipped"})
    scenario = load_scenario(path)
    data = load_federated_data(scenario)
    x, y = all_samples_of(scenario, data)
    poisoned, start = poisoned_clients(scenario), 0
    assert len(poisoned) == 2
    for n in range(4):
        own = data.client(n)
        stop = start + len(own.train_y)
        np.testing.assert_array_equal(x[start:stop], own.train_x)
        np.testing.assert_array_equal(y[start:stop], 9 - own.train_y if n in poisoned else own.train_y)
        start = stop
    assert start == len(y)


def test_poisoned_uploads_change_nothing(write):
    honest, feigning = load_scenario(write()), load_scenario(write(faults={"poisoned": 0.5}))
    data = load_federated_data(honest)
    for one, other in zip(all_samples_of(honest, data), all_samples_of(feigning, data), strict=True):
        np.testing.assert_array_equal(one, other)


def test_centralized_training_refuses_streams(write, digits_scenario, tmp_path):
    tables = {"continual": {"learner": "naive", "tasks": {"kind": "split", "count": 2}}, "rounds": 2}
    with pytest.raises(
        UserError, match="'centralized' does not support streams of tasks; use the learner 'joint'"
    ) as caught:
        fedkd.run(load_scenario(write(**tables)), out=tmp_path / "run")
    assert caught.value.key == "fusion.strategy"


def test_centralized_training_refuses_estimators(write, tmp_path):
    with pytest.raises(UserError, match=r"model 'random-forest' is not a network") as caught:
        fedkd.run(load_scenario(write(clients=[SMALL, {"model": "random-forest"}])), out=tmp_path / "run")
    assert caught.value.key == "fusion.strategy"
