"""A fusion strategy in a Flower app."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import isnan, nan
from typing import ClassVar

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedkd.engine.inline import InlineGrid
from fedkd.errors import RunFailed
from fedkd.federation.apps.knowledge_fusion import KnowledgeFusion
from fedkd.federation.compat import node_id_of
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record
from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.distillation.fedmd import FedMD
from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.local import Local
from fedkd.fusion.strategy import FusionStrategy, Guidance, Knowledge
from fedkd.server.fusing import ServerKnowledge
from fedkd.server.guidance import TARGETS

N, M, C = 4, 6, 3


def logits_of(client: int, round: int) -> np.ndarray:
    return np.random.default_rng([client, round]).normal(size=(M, C)).astype(np.float32)


class Federation:
    """A Flower app whose clients upload known logits and note what they are sent.

    Node order is the reverse of client order, unless `in_order`.
    """

    def __init__(self, failing: frozenset[tuple[int, int]] = frozenset(), in_order: bool = False) -> None:
        self.failing = failing
        self.nodes = {c: node_id_of(c if in_order else N - 1 - c) for c in range(N)}
        self.sent: dict[int, list[tuple[str, int, int, np.ndarray]]] = defaultdict(list)
        self.records: list[object] = []
        app = ClientApp()
        app.train()(self.train)
        app.evaluate()(self.evaluate)
        self.grid = InlineGrid(app, self.context, N)

    def context(self, index: int) -> Context:
        node = node_id_of(index)
        (client,) = [client for client, other in self.nodes.items() if other == node]
        return Context(1, node, {"client": client}, RecordDict(), {})

    def note(self, kind: str, message: Message, client: int) -> int:
        config = message.content.config_records[msg.CONFIG]
        round = int(config[msg.SERVER_ROUND])
        for name, of_round in ((msg.GUIDANCE, msg.GUIDANCE_ROUND), (msg.MISSED, msg.MISSED_ROUND)):
            if name in message.content:
                record = message.content.array_records[name]
                self.records.append(record)
                received = (kind, round, int(config[of_round]), record[TARGETS].numpy())
                self.sent[client].append(received)
        return round

    def train(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["client"])
        round = self.note("train", message, client)
        if (client, round) in self.failing:
            raise RuntimeError("no power")
        content = {
            msg.IDENTITY: msg.identity(client),
            msg.ARRAYS: arrays_to_record({"logits": logits_of(client, round)}),
            msg.METRICS: MetricRecord({msg.NUM_EXAMPLES: 10 * (client + 1), "train_loss": float(client)}),
        }
        return Message(RecordDict(content), reply_to=message)

    def evaluate(self, message: Message, context: Context) -> Message:
        client = int(context.node_config["client"])
        self.note("evaluate", message, client)
        metrics = MetricRecord({msg.NUM_EXAMPLES: 1, "accuracy": client / 10})
        return Message(
            RecordDict({msg.IDENTITY: msg.identity(client), msg.METRICS: metrics}), reply_to=message
        )


def fused(strategy: FusionStrategy, round: int, clients=tuple(range(N))) -> np.ndarray:
    """Return the guidance of clients that all took part, fused directly."""
    logits = np.stack([logits_of(client, round) for client in clients])
    samples = np.array([10 * (client + 1) for client in clients])
    guidance = strategy.fuse(Knowledge(clients=clients, logits=logits, samples=samples), {})
    assert guidance.targets is not None
    return guidance.targets


def train_round(
    strategy: KnowledgeFusion, federation: Federation, round: int, clients=tuple(range(N))
) -> None:
    cohort = [federation.nodes[client] for client in clients]
    requests = strategy.messages("train", round, ConfigRecord(), cohort)
    strategy.aggregate_train(round, federation.grid.send_and_receive(requests))


def evaluate_round(strategy: KnowledgeFusion, federation: Federation, round: int) -> None:
    requests = strategy.configure_evaluate(round, arrays_to_record({}), ConfigRecord(), federation.grid)
    strategy.aggregate_evaluate(round, federation.grid.send_and_receive(requests))


def test_a_flower_app_receives_guidance_once_per_round():
    federation = Federation()
    strategy = KnFu(beta=10.0, weight_by_size=True)
    result = KnowledgeFusion(strategy).start(federation.grid, num_rounds=2)
    for client in range(N):
        received = federation.sent[client]
        assert [(kind, at, of) for kind, at, of, _ in received] == [("evaluate", 1, 1), ("evaluate", 2, 2)]
        for _, round, _, targets in received:
            assert np.array_equal(targets, fused(strategy, round)[client])
    assert result.train_metrics_clientapp[2]["train_loss"] == pytest.approx(1.5)
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == pytest.approx(0.15)


def test_guidance_waits_for_the_next_training_without_evaluation():
    federation = Federation()
    strategy = KnowledgeFusion(KnFu(beta=2.0))
    for round in (1, 2, 3):
        train_round(strategy, federation, round)
    for client in range(N):
        assert [received[:3] for received in federation.sent[client]] == [("train", 2, 1), ("train", 3, 2)]
        assert np.array_equal(federation.sent[client][1][3], fused(KnFu(beta=2.0), 2)[client])


def test_the_order_of_replies_does_not_change_fusion():
    def targets(order) -> dict[int, np.ndarray]:
        federation, strategy = Federation(), KnowledgeFusion(KnFu(beta=1.0))
        requests = strategy.configure_train(1, arrays_to_record({}), ConfigRecord(), federation.grid)
        replies = list(federation.grid.send_and_receive(requests))
        strategy.aggregate_train(1, [replies[i] for i in order])
        federation.grid.send_and_receive(
            strategy.configure_evaluate(1, arrays_to_record({}), ConfigRecord(), federation.grid)
        )
        return {client: received[0][3] for client, received in federation.sent.items()}

    first, second = targets([0, 1, 2, 3]), targets([2, 0, 3, 1])
    for client in range(N):
        assert first[client].tobytes() == second[client].tobytes()


def test_failed_clients_are_left_out_and_receive_nothing():
    federation = Federation(failing=frozenset({(1, 1)}))
    strategy = KnowledgeFusion(KnFu(beta=1.0))
    strategy.start(federation.grid, num_rounds=1)
    assert sorted(federation.sent) == [0, 2, 3]
    others = (0, 2, 3)
    wanted = fused(KnFu(beta=1.0), 1, others)
    for position, client in enumerate(others):
        assert np.array_equal(federation.sent[client][0][3], wanted[position])
    report = strategy.report()
    assert report is not None and report.clients == report.present == others


def test_a_round_of_failed_clients_does_not_end_the_run():
    federation = Federation(failing=frozenset((client, 1) for client in range(N)))
    KnowledgeFusion(KnFu()).start(federation.grid, num_rounds=2)
    assert all([received[:3] for received in federation.sent[c]] == [("evaluate", 2, 2)] for c in range(N))


def test_knowledge_of_absent_clients_ages():
    seen: list[Knowledge] = []

    @dataclass(frozen=True)
    class Remembers(FusionStrategy):
        name = "remembers"

        capabilities: ClassVar[Capabilities] = Capabilities(stale_decay=0.5)

        def fuse(self, knowledge, memory):
            seen.append(knowledge)
            return Guidance(targets=np.zeros((M, C), dtype=np.float32))

        def loss(self, student_logits, targets):
            raise NotImplementedError

    federation, strategy = Federation(), KnowledgeFusion(Remembers())
    train_round(strategy, federation, 1, (0, 2))
    train_round(strategy, federation, 2, (2,))
    train_round(strategy, federation, 4, (3,))
    assert [knowledge.clients for knowledge in seen] == [(0, 2), (0, 2), (0, 2, 3)]
    assert [knowledge.age.tolist() for knowledge in seen] == [[0, 0], [1, 0], [3, 2, 0]]
    assert seen[2].samples.tolist() == [10, 30, 40]
    computed = [(0, 1), (2, 2), (3, 4)]
    assert np.array_equal(seen[2].logits, np.stack([logits_of(*at) for at in computed]))


def test_shared_guidance_is_one_record():
    federation = Federation()
    KnowledgeFusion(FedMD()).start(federation.grid, num_rounds=1)
    assert len(federation.records) == N
    assert len({id(record) for record in federation.records}) == 1
    mean = np.mean([logits_of(client, 1) for client in range(N)], axis=0, dtype=np.float64)
    np.testing.assert_allclose(federation.sent[0][0][3], mean, rtol=1e-6)


def test_a_strategy_without_targets_sends_no_guidance():
    federation = Federation()
    strategy = KnowledgeFusion(Local())
    strategy.start(federation.grid, num_rounds=2)
    assert not federation.sent
    assert strategy.report() is None


def test_an_unnamed_client_is_identified_by_its_node():
    reply = Message(RecordDict(), dst_node_id=9, message_type="train")
    assert msg.sender(reply) == reply.metadata.src_node_id


@pytest.mark.parametrize(
    "strategy", [KnFu(beta=1.0, stale_decay=0.5, distribution_momentum=0.5), FedMD(), KnFu(per_class=True)]
)
def test_a_restored_strategy_continues_exactly(strategy):
    straight, federation = KnowledgeFusion(strategy), Federation()
    train_round(straight, federation, 1, (0, 1, 2))
    train_round(straight, federation, 2, (1, 3))
    state = straight.state()

    restored, other = KnowledgeFusion(strategy), Federation(in_order=True)
    assert other.nodes != federation.nodes
    restored.introduce(other.nodes)
    restored.restore(state)
    assert set(restored.state()) == set(state)
    straight.introduce(federation.nodes)
    federation.sent.clear()
    for grid, run in ((federation, straight), (other, restored)):
        train_round(run, grid, 3)
        grid.grid.send_and_receive(run.configure_evaluate(3, arrays_to_record({}), ConfigRecord(), grid.grid))
    for client in range(N):
        ours, theirs = federation.sent[client], other.sent[client]
        assert [received[:3] for received in ours] == [received[:3] for received in theirs]
        assert len(ours) >= 1
        for one, two in zip(ours, theirs, strict=True):
            assert one[3].tobytes() == two[3].tobytes()


def test_a_strategys_memory_may_have_any_name():
    @dataclass(frozen=True)
    class Counts(FusionStrategy):
        name = "counts"

        def fuse(self, knowledge, memory):
            return Guidance(None, memory={"a/b": memory.get("a/b", np.zeros(1)) + 1, "c": np.ones(2)})

        def loss(self, student_logits, targets):
            raise NotImplementedError

    strategy, federation = KnowledgeFusion(Counts()), Federation()
    train_round(strategy, federation, 1)
    restored = KnowledgeFusion(Counts())
    restored.introduce(federation.nodes)
    restored.restore(strategy.state())
    train_round(restored, federation, 2)
    assert restored.state()["task/0/memory/a/b"].tolist() == [2.0]


@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize("introduced", [False, True])
def test_shared_guidance_reaches_absent_clients_at_their_next_training(introduced, evaluated):
    federation, strategy = Federation(), KnowledgeFusion(FedMD())
    if introduced:
        strategy.introduce(federation.nodes)
    for round, clients in enumerate([(0, 1), (1, 2), (0, 1, 2, 3)], start=1):
        train_round(strategy, federation, round, clients)
        if evaluated:
            evaluate_round(strategy, federation, round)
    received = {c: [row[:3] for row in federation.sent[c]] for c in range(N)}
    own = "evaluate" if evaluated else "train"
    at = {1: (own, 1 if evaluated else 2, 1), 2: (own, 2 if evaluated else 3, 2)}
    last = [("evaluate", 3, 3)] if evaluated else []
    assert received == {
        0: [at[1] if evaluated else ("train", 3, 1), ("train", 3, 2), *last],
        1: [at[1], at[2], *last],
        2: [("train", 2, 1), at[2], *last],
        3: [("train", 3, 2), *last],
    }
    assert np.array_equal(federation.sent[3][0][3], fused(FedMD(), 2, (1, 2)))


def test_personal_guidance_reaches_only_its_client():
    federation, strategy = Federation(), KnowledgeFusion(KnFu(beta=1.0))
    strategy.introduce(federation.nodes)
    train_round(strategy, federation, 1, (0, 1))
    train_round(strategy, federation, 2)
    assert sorted(federation.sent) == [0, 1]


def test_means_are_over_evaluated_clients():
    rows = [
        {"accuracy": 0.5, "fusion_gain_local": nan},
        {"accuracy": 0.7, "fusion_gain_local": 0.2},
        {"accuracy": 0.9, "fusion_gain_local": 0.4},
    ]
    replies = []
    for client, row in enumerate(rows):
        content = {
            msg.IDENTITY: msg.identity(client),
            msg.METRICS: MetricRecord({msg.NUM_EXAMPLES: 1, **row}),
        }
        replies.append(Message(RecordDict(content), dst_node_id=1, message_type="evaluate"))
    mean = KnowledgeFusion(FedMD()).aggregate_evaluate(1, replies)
    assert dict(mean) == pytest.approx({"accuracy": 0.7, "fusion_gain_local": 0.3})
    nobody = KnowledgeFusion(FedMD()).aggregate_evaluate(1, replies[:1])
    assert isnan(nobody["fusion_gain_local"])


def test_the_bytes_of_guidance_count_once():
    table = 4 * M * C
    for evaluations in (0, 1, 2):
        federation, strategy = Federation(), KnowledgeFusion(FedMD())
        strategy.introduce(federation.nodes)
        sent = []
        for round, clients in enumerate([(0, 1), (1, 2), (0, 3)], start=1):
            train_round(strategy, federation, round, clients)
            for _ in range(evaluations):
                evaluate_round(strategy, federation, round)
            sent.append(strategy.sent_bytes())
        # Two tables a round for those who took part; one for 2 in round 2, for 0 and 3 in round 3.
        assert sent == [2 * table, 3 * table, 4 * table]
        assert strategy.sent_bytes() == 0


def test_requested_samples_count_for_every_client():
    @dataclass(frozen=True)
    class Asking(FedMD):
        name = "asking"

        def request(self, transfer_size, memory, generator):
            return np.arange(M)

    federation = Federation()
    strategy = KnowledgeFusion(Asking(), ServerKnowledge(transfer_size=9))
    train_round(strategy, federation, 1, (0, 1, 2))
    samples = 4 * M  # int32, on the way to the clients and back with their guidance
    assert strategy.sent_bytes() == 3 * (samples + samples + 4 * M * C)


def test_records_hold_one_round():
    federation, strategy = Federation(), KnowledgeFusion(KnFu(beta=1.0))
    strategy.introduce(federation.nodes)
    for round in range(1, 6):
        train_round(strategy, federation, round)
        evaluate_round(strategy, federation, round)
        assert len(strategy._records) <= N


@dataclass(frozen=True)
class Halves(FedMD):
    """Even clients share one thing, odd ones another: the first to upload of each half."""

    name = "halves"

    def fuse(self, knowledge, memory):
        first: dict[int, dict[str, np.ndarray]] = {}
        for client, logits in zip(knowledge.clients, knowledge.logits, strict=True):
            first.setdefault(client % 2, {"targets": logits})
        others = [client for client in range(N) if client not in knowledge.clients]
        return Guidance(
            targets=None,
            personal=[first[client % 2] for client in knowledge.clients],
            absent={client: first[client % 2] for client in others if client % 2 in first},
        )


def test_absent_clients_receive_the_newest_of_their_group_once():
    federation, strategy = Federation(), KnowledgeFusion(Halves())
    strategy.introduce(federation.nodes)
    train_round(strategy, federation, 1, clients=(0,))
    train_round(strategy, federation, 2, clients=(1, 2))  # 2 is owed round 1's, 1 nothing
    train_round(strategy, federation, 3, clients=(1,))
    evaluate_round(strategy, federation, 3)
    for round in (4, 5):
        train_round(strategy, federation, round, clients=(0, 3))
    received = {c: [row[:3] for row in federation.sent[c]] for c in range(N)}
    assert received == {
        0: [("evaluate", 3, 1), ("train", 4, 2), ("train", 5, 4)],
        1: [("train", 3, 2), ("evaluate", 3, 3)],
        2: [("train", 2, 1), ("evaluate", 3, 2)],
        3: [("train", 4, 3), ("train", 5, 4)],
    }
    assert np.array_equal(federation.sent[0][1][3], logits_of(2, 2))
    assert np.array_equal(federation.sent[3][0][3], logits_of(1, 3))


@pytest.mark.parametrize("strategy", [Halves(), FedMD()])
def test_a_checkpoint_stores_shared_messages_once(strategy):
    federation, straight = Federation(), KnowledgeFusion(strategy)
    straight.introduce(federation.nodes)
    train_round(straight, federation, 1, (0, 1))
    train_round(straight, federation, 2, (1, 2))
    groups = {
        (name.split("/")[3], *values.tolist()): int(straight.state()[name.removesuffix("clients") + "round"])
        for name, values in straight.state().items()
        if name.endswith("/clients")
    }
    if isinstance(strategy, Halves):
        assert groups == {
            ("own", 0): 1,
            ("own", 1): 2,
            ("own", 2): 2,
            ("missed", 0): 2,
            ("missed", 3): 2,
        }
    else:
        assert groups == {("own", 0): 1, ("own", 1, 2): 2, ("missed", 0, 3): 2}
    restored = KnowledgeFusion(strategy)
    restored.introduce(federation.nodes)
    restored.restore(straight.state())
    first, second = straight.state(), restored.state()
    assert list(first) == list(second)
    assert all(values.tobytes() == second[name].tobytes() for name, values in first.items())


def test_the_server_waits_for_enough_nodes(monkeypatch):
    """On Flower's runtimes nodes appear some time after the server has begun."""
    federation, waited = Federation(), []
    everyone = list(federation.grid.get_node_ids())
    monkeypatch.setattr(federation.grid, "get_node_ids", lambda: everyone[: len(waited)])
    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", waited.append)
    KnowledgeFusion(FedMD(), min_available_nodes=3).start(federation.grid, num_rounds=1)
    assert len(waited) == 3


def test_a_round_without_clients_fails(monkeypatch):
    federation = Federation()
    monkeypatch.setattr(federation.grid, "send_and_receive", lambda messages, timeout: [])
    with pytest.raises(RunFailed, match="round 1: no node has answered"):
        KnowledgeFusion(FedMD()).start(federation.grid, num_rounds=2)
