"""SCAFFOLD on a linear model against a float64 computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tomli_w
from flwr.app import ConfigRecord, Message, RecordDict
from numpy.testing import assert_allclose

from fedkd.clients.client import Client
from fedkd.clients.factory import ClientFactory
from fedkd.data.federated import FederatedData, load_federated_data
from fedkd.engine.clients import inline_grid
from fedkd.engine.inline import InlineGrid
from fedkd.errors import UserError
from fedkd.federation.apps.knowledge_fusion import KnowledgeFusion
from fedkd.federation.apps.server_app import server_strategy
from fedkd.federation.compat import node_id_of
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record, record_to_arrays
from fedkd.fusion.strategy import Knowledge
from fedkd.fusion.weights.scaffold import Scaffold
from fedkd.plan.load import load_plan
from fedkd.plan.plan import Plan
from fedkd.server.models import TransferSet, TransferSetModels
from fedkd.simulation.scenario_check import check_plan
from fedkd.tracking.wording import format_bytes

LR, STEPS = 0.2, 3


@pytest.fixture
def plan_with(digits_scenario, tmp_path):
    """Return a function from changes to a plan: linear models, `STEPS` full-batch steps a round."""

    def make(fusion: dict[str, Any] | None = None, **changes: Any) -> Plan:
        tables = digits_scenario | {
            "data": digits_scenario["data"] | {"clients": 2},
            "clients": [{"model": "mlp", "args": {"hidden": []}}],
            "training": {"optimizer": "sgd", "lr": LR, "batch_size": 1000, "local_epochs": STEPS},
            "fusion": {"strategy": "scaffold", **(fusion or {})},
        }
        path = tmp_path / "scenario.toml"
        path.write_text(tomli_w.dumps(tables | changes))
        return load_plan(path)

    return make


def gradient(flat: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the gradient of the mean cross entropy at weight `[C, D]` and bias `[C]`, made flat."""
    rows = x.reshape(len(x), -1).astype(np.float64)
    weight, bias = flat[:-10].reshape(10, -1), flat[-10:]
    z = rows @ weight.T + bias
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1.0
    p /= len(y)
    return np.concatenate([(p.T @ rows).ravel(), p.sum(axis=0)])


def by_hand(
    start: np.ndarray, shards: list, rounds: list[list[int]], server_lr: float
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return x, c and every c_n in float64 after rounds of the clients named."""
    x, c = start.astype(np.float64), np.zeros(len(start))
    own = [np.zeros(len(start)) for _ in shards]
    for clients in rounds:
        ways, turns = [], []
        for n in clients:
            y = x.copy()
            for _ in range(STEPS):
                y -= LR * (gradient(y, *shards[n]) + c - own[n])
            fresh = own[n] - c + (x - y) / (STEPS * LR)
            ways.append(y - x)
            turns.append(fresh - own[n])
            own[n] = fresh
        x = x + server_lr * np.mean(ways, axis=0)
        c = c + np.sum(turns, axis=0) / len(shards)
    return x, c, own


def run_by_parts(
    plan: Plan, data: FederatedData, clients: list[Client], rounds: list[list[int]]
) -> tuple[dict, list]:
    """Run fedkd's own halves of the strategy without messages; return what the server has, and each c_n."""
    strategy = clients[0].strategy
    assert isinstance(strategy, Scaffold)
    guidance = strategy.prepare(TransferSetModels(plan, TransferSet.of(data, 0, data.classes), 0))
    for round, present in enumerate(rounds, start=1):
        uploads = []
        for n in present:
            clients[n].complete(clients[n].learn(guidance.shared, round - 1))
            clients[n].complete(clients[n].train(round))
            uploads.append(clients[n].upload(round))
        knowledge = Knowledge(
            clients=tuple(present),
            logits=None,
            samples=np.array([clients[n].num_train_samples for n in present]),
            payload={name: [upload[name] for upload in uploads] for name in uploads[0]},
            server=TransferSetModels(plan, TransferSet.of(data, 0, data.classes), round),
        )
        guidance = strategy.fuse(knowledge, guidance.memory)
    return dict(guidance.memory), [client.memory.get("own_control") for client in clients]


def start_of(plan: Plan, data: FederatedData) -> np.ndarray:
    return (
        Scaffold()
        .prepare(TransferSetModels(plan, TransferSet.of(data, 0, data.classes), 0))
        .shared["parameters"]
    )


@pytest.mark.parametrize("server_lr", [1.0, 0.5])
@pytest.mark.parametrize("rounds", [[[0, 1], [0, 1]], [[0], [0, 1], [1]]], ids=["all", "some"])
def test_scaffold_equals_a_float64_computation(server_lr, rounds, plan_with):
    plan = plan_with({"server_lr": server_lr})
    data = load_federated_data(plan.scenario)
    local = ClientFactory(plan, data)
    clients = [local.build(n) for n in range(2)]
    shards = [(data.client(n).train_x, data.client(n).train_y) for n in range(2)]
    x, c, own = by_hand(start_of(plan, data), shards, rounds, server_lr)
    state, own_of_clients = run_by_parts(plan, data, clients, rounds)
    assert np.abs(c).max() > 1e-2 and np.abs(x - start_of(plan, data)).max() > 1e-2
    assert_allclose(state["parameters"], x, atol=2e-6)
    assert_allclose(state["control"], c, atol=5e-6)
    for kept, wanted in zip(own_of_clients, own, strict=True):
        assert_allclose(kept, wanted, atol=5e-6)


def test_equal_data_reduce_scaffold_to_server_averaging(plan_with):
    plan = plan_with({"server_lr": 0.7})
    data = load_federated_data(plan.scenario)
    clients = [ClientFactory(plan, data).build(0) for _ in range(2)]  # twice the same client
    shard = (data.client(0).train_x, data.client(0).train_y)
    x = start_of(plan, data).astype(np.float64)
    for _ in range(2):
        y = x.copy()
        for _ in range(STEPS):
            y -= LR * gradient(y, *shard)
        x = x + 0.7 * (y - x)
    state, own = run_by_parts(plan, data, clients, [[0, 1], [0, 1]])
    assert_allclose(state["parameters"], x, atol=2e-6)
    assert_allclose(state["control"], own[0], atol=1e-6)


def test_a_client_without_steps_keeps_its_control_variate(plan_with):
    plan = plan_with(faults={"stragglers": 1.0, "straggler_work": 0.0})
    data = load_federated_data(plan.scenario)
    client = ClientFactory(plan, data).build(0)
    client.complete(
        client.learn(
            Scaffold().prepare(TransferSetModels(plan, TransferSet.of(data, 0, data.classes), 0)).shared, 0
        )
    )
    client.complete(client.train(1))
    uploaded = client.upload(1)
    assert not uploaded["step"].any() and not uploaded["control"].any()


def test_normalisation_statistics_are_averaged_plainly(plan_with):
    """A server learning rate would take a variance beyond those of the clients, even below zero."""
    plan = plan_with(
        {"server_lr": 3.0},
        clients=[{"model": "resnet8", "args": {"norm": "batch"}}],
        training={"optimizer": "sgd", "lr": 0.01, "batch_size": 1000},
    )
    data = load_federated_data(plan.scenario)
    clients = [ClientFactory(plan, data).build(n) for n in range(2)]
    state, _ = run_by_parts(plan, data, clients, [[0, 1]])
    trained = [client.weights() for client in clients]
    clients[0].complete(clients[0].learn(state, 1))
    averaged = clients[0].weights()
    names = [name for name in averaged if name.endswith(("running_mean", "running_var"))]
    assert names
    for name in names:
        assert_allclose(averaged[name], (trained[0][name] + trained[1][name]) / 2, rtol=1e-6, atol=1e-7)
    counters = [name for name in averaged if name.endswith("num_batches_tracked")]
    assert counters and all(averaged[name] == 1 for name in counters)


# The server's messages --------------------------------------------------------------------------------


def sent_in(messages: list, grid: InlineGrid) -> dict[int, int]:
    """Send messages; return for every client the round of the guidance that its message carried."""
    replies = list(grid.send_and_receive(messages))
    assert not any(reply.has_error() for reply in replies)
    rounds = {}
    for message in messages:
        config = message.content.config_records[msg.CONFIG]
        for record, of_round in ((msg.GUIDANCE, msg.GUIDANCE_ROUND), (msg.MISSED, msg.MISSED_ROUND)):
            if record in message.content:
                rounds[message.metadata.dst_node_id] = int(config[of_round])
    return {n: rounds[node_id_of(n)] for n in range(3) if node_id_of(n) in rounds}


class Federation:
    """Three clients, of which any may train in a round."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.data = plan, load_federated_data(plan.scenario)
        self.grid = inline_grid(plan, self.data)
        self.strategy = self.new_server()

    def new_server(self) -> KnowledgeFusion:
        strategy = server_strategy(self.plan, self.data)
        assert isinstance(strategy, KnowledgeFusion)
        return strategy

    def train(self, round: int, clients: list[int]) -> dict[int, int]:
        cohort = [node_id_of(n) for n in clients]
        messages = self.strategy.messages("train", round, ConfigRecord(), cohort)
        replies = []
        send = self.grid.send_and_receive
        self.grid.send_and_receive = lambda sent: replies.extend(send(sent)) or replies
        try:
            rounds = sent_in(messages, self.grid)
        finally:
            self.grid.send_and_receive = send
        self.strategy.aggregate_train(round, replies)
        return rounds

    def evaluate(self, round: int) -> dict[int, int]:
        messages = list(
            self.strategy.configure_evaluate(round, arrays_to_record({}), ConfigRecord(), self.grid)
        )
        return sent_in(messages, self.grid)


def test_all_clients_receive_the_newest_weights(plan_with, digits_scenario):
    federation = Federation(plan_with(data=digits_scenario["data"] | {"clients": 3}))
    federation.strategy.introduce({n: node_id_of(n) for n in range(3)})
    assert federation.train(1, [0, 1]) == {0: 0, 1: 0}, "the initial weights, for those who take part"
    assert federation.train(2, [1, 2]) == {1: 1, 2: 1}, "the newest, for those who were away too"
    assert federation.evaluate(2) == {0: 2, 1: 2, 2: 2}
    assert federation.evaluate(2) == {0: 2}, "its next training is to bring it along, evaluated or not"
    assert federation.train(3, [0]) == {0: 2}
    assert federation.evaluate(3) == {0: 3, 1: 3, 2: 3}
    restored = federation.new_server()
    restored.introduce({n: node_id_of(n) for n in range(3)})
    restored.restore(federation.strategy.state())
    assert restored.state().keys() == federation.strategy.state().keys()
    federation.strategy = restored
    assert federation.train(4, [2]) == {2: 3}, "a resumed server knows who is owed what"
    assert federation.evaluate(4) == {0: 4, 1: 4, 2: 4}


def test_evaluated_clients_have_the_server_weights(plan_with, digits_scenario):
    federation = Federation(plan_with(data=digits_scenario["data"] | {"clients": 3}))
    federation.train(1, [0, 2])
    federation.evaluate(1)
    x = federation.strategy.state()["task/0/memory/parameters"]
    for n in range(3):
        request = Message(RecordDict(), node_id_of(n), msg.EXPORT_STATE)
        (reply,) = federation.grid.send_and_receive([request])
        state = record_to_arrays(reply.content.array_records[msg.STATE])
        weights = [values.ravel() for name, values in state.items() if name.startswith("model/")]
        assert np.array_equal(np.sort(np.concatenate(weights)), np.sort(x))


# What it refuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"training": {"optimizer": "adam"}}, "training.optimizer", "must be 'sgd', got 'adam'"),
        ({"training": {"optimizer": "sgd", "momentum": 0.9}}, "training.momentum", "must be 0, got 0.9"),
        ({"clients": [{"model": "mlp"}, {"model": "lenet"}]}, "clients", "one architecture.*mlp.*lenet"),
        (
            {"clients": [{"model": "random-forest"}], "training": {}},
            "fusion.strategy",
            "'random-forest' is not a network",
        ),
    ],
)
def test_unsupported_settings_are_refused(changes, key, message, plan_with):
    plan = plan_with(**changes)
    with pytest.raises(UserError, match=message) as caught:
        inline_grid(plan, load_federated_data(plan.scenario))
    assert caught.value.key == key


@pytest.mark.parametrize("strategy", ["scaffold", "feddf"])
def test_check_counts_weights_and_no_predictions(strategy, plan_with):
    lines = list(check_plan(plan_with({"strategy": strategy})))
    (traffic,) = [line for line in lines if line.startswith("traffic")]
    sent = 2 * (64 * 10 + 10) * 4
    assert f"at least {format_bytes(sent)} up" in traffic
