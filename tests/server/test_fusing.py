"""A fusion strategy at work over the rounds of a run, without messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.distillation.fedmd import FedMD
from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.local import Local
from fedkd.fusion.strategy import FusionStrategy, Guidance, Knowledge
from fedkd.server.fusing import Fusing, ServerKnowledge
from fedkd.server.knowledge_cache import Upload

N, M, C = 4, 6, 3


def upload(client: int, round: int) -> Upload:
    logits = np.random.default_rng([client, round]).normal(size=(M, C)).astype(np.float32)
    return Upload(round, {"logits": logits}, 10 * (client + 1))


def uploads(round: int, clients=range(N)) -> dict[int, Upload]:
    return {client: upload(client, round) for client in clients}


def waiting(fusing: Fusing) -> dict[int, tuple[int, bytes]]:
    """Take what waits for every client: its round, and its targets."""
    taken = {client: fusing.mailbox.take(client) for client in range(N)}
    return {c: (p.round, p.arrays["targets"].tobytes()) for c, p in taken.items() if p is not None}


@dataclass(frozen=True)
class Asking(FusionStrategy):
    """Asks for some transfer samples, remembers how many rounds there were, and notes what it is handed."""

    name = "asking"
    seen: list[Knowledge] = field(default_factory=list)

    def request(self, size, memory, generator):
        return np.sort(generator.choice(size, 2, replace=False))

    def fuse(self, knowledge, memory):
        self.seen.append(knowledge)
        rounds = memory.get("rounds", np.zeros(1)) + 1
        return Guidance(np.full(knowledge.logits.shape[1:], 1 / C, np.float32), memory={"rounds": rounds})

    def loss(self, student_logits, targets):
        raise NotImplementedError


def test_knowledge_is_fused_in_client_order():
    orders = [list(range(N)), [2, 0, 3, 1]]
    fused = []
    for order in orders:
        fusing = Fusing(KnFu(beta=1.0), ServerKnowledge())
        fusing.fuse(1, {client: upload(client, 1) for client in order}, range(N))
        assert fusing.report.clients == tuple(range(N))
        fused.append(waiting(fusing))
    assert fused[0] == fused[1] and len(fused[0]) == N


def test_only_clients_with_fused_knowledge_receive_guidance():
    fusing = Fusing(KnFu(beta=1.0), ServerKnowledge())
    fusing.fuse(1, uploads(1, (0, 2)), range(N))
    assert set(waiting(fusing)) == {0, 2}
    assert fusing.report.clients == fusing.report.present == (0, 2)


def test_the_report_explains_the_weight_of_a_neighbour():
    fusing = Fusing(KnFu(beta=1.0), ServerKnowledge())
    fusing.fuse(1, uploads(1), range(N))
    report = fusing.report
    assert_array_equal(np.diag(report.distances), np.zeros(N))
    others = ~np.eye(N, dtype=bool)
    by_distance = np.exp(-report.distances) / np.exp(-report.distances).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(report.weights, by_distance)
    assert (report.left_out[others] > 0).all() and report.left_out.max() <= 1
    fusing = Fusing(FedMD(), ServerKnowledge())
    fusing.fuse(1, uploads(1), range(N))
    assert fusing.report.distances is None and fusing.report.left_out is None


def test_the_report_covers_the_last_round_only():
    fusing = Fusing(KnFu(beta=1.0), ServerKnowledge())
    fusing.fuse(1, uploads(1), range(N))
    assert fusing.report is not None
    fusing.fuse(2, {}, range(N))
    assert fusing.report is None


def test_no_uploads_give_no_fusion():
    fusing = Fusing(Local(), ServerKnowledge())
    fusing.fuse(1, {0: Upload(1, {}, 10)}, range(N))
    assert not waiting(fusing) and fusing.report is None


def test_labels_belong_to_the_requested_samples():
    @dataclass(frozen=True)
    class Labelled(Asking):
        capabilities: ClassVar[Capabilities] = Capabilities(needs={"transfer_labels"})

    strategy, labels = Labelled(), np.arange(100, 130)
    fusing = Fusing(strategy, ServerKnowledge(transfer_size=30, labels=labels, seed=3))
    asked = fusing.request(1)
    assert fusing.request(1).tolist() == asked.tolist(), "the same whenever it is asked"
    assert fusing.request(2).tolist() != asked.tolist()
    fusing.request(1)
    logits = np.zeros((2, C), np.float32)
    fusing.fuse(1, {0: Upload(1, {"logits": logits}, 10)}, range(N))
    assert_array_equal(strategy.seen[0].labels, labels[asked])
    assert_array_equal(fusing.mailbox.take(0).arrays["samples"], asked)


@pytest.mark.parametrize(
    "strategy", [KnFu(beta=1.0, stale_decay=0.5, distribution_momentum=0.5), FedMD(), KnFu(per_class=True)]
)
def test_a_restored_fusion_continues_exactly(strategy):
    straight, restored = Fusing(strategy, ServerKnowledge()), Fusing(strategy, ServerKnowledge())
    straight.fuse(1, uploads(1, (0, 1, 2)), range(N))
    straight.mailbox.take(1)
    straight.fuse(2, uploads(2, (1, 3)), range(N))
    restored.restore(straight.state())
    again, state = restored.state(), straight.state()
    assert set(again) == set(state)
    assert all(again[name].tobytes() == values.tobytes() for name, values in state.items())
    for fusing in (straight, restored):
        fusing.begin(range(N))  # it has begun: nothing happens
        fusing.fuse(3, uploads(3, (2, 3)), range(N))
    ours, theirs = waiting(straight), waiting(restored)
    assert ours == theirs and len(ours) >= 3


def test_stored_knowledge_outlives_its_message_buffer():
    fusing = Fusing(KnFu(beta=1.0, stale_decay=0.5), ServerKnowledge())
    sent = uploads(1, (0, 1))
    wanted = sent[0].arrays["logits"].copy()
    fusing.fuse(1, sent, range(N))
    sent[0].arrays["logits"][:] = 0.0
    assert_array_equal(fusing.state()["last/0/arrays/logits"], wanted)
