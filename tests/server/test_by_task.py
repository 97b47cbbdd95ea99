"""Knowledge of a stream is fused separately for each task."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.testing import assert_array_equal

from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.distillation.fedmd import FedMD
from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.strategy import FusionStrategy, Guidance, Knowledge
from fedkd.server.by_task import TaskwiseFusion
from fedkd.server.fusing import Fusing, ServerKnowledge
from fedkd.server.knowledge_cache import Upload
from fedkd.server.reports import FusionReport, merged_reports

N, C = 5, 3
SIZES = {0: 6, 1: 4, 2: 8}
"""Transfer samples of every task."""
REMEMBERS = KnFu(beta=1.0, stale_decay=0.5, distribution_momentum=0.5)


def known(task: int) -> ServerKnowledge:
    return ServerKnowledge(transfer_size=SIZES[task])


def uploads(round: int, task_of: dict[int, int]) -> dict[int, Upload]:
    found = {}
    for client, task in task_of.items():
        logits = np.random.default_rng([client, round]).normal(size=(SIZES[task], C)).astype(np.float32)
        found[client] = Upload(round, {"logits": logits}, 10 * (client + 1))
    return found


def test_each_task_is_fused_separately():
    task_of = {0: 1, 1: 0, 2: 1, 3: 0, 4: 2}
    sent = uploads(1, task_of)
    fusing = TaskwiseFusion(KnFu(beta=1.0), known)
    fusing.move(task_of)
    fusing.begin(range(N))
    cost = fusing.fuse(1, sent, range(N))
    alone_cost = 0
    for task in SIZES:
        own = [client for client in range(N) if task_of[client] == task]
        alone = Fusing(KnFu(beta=1.0), known(task))
        alone_cost += alone.fuse(1, {client: sent[client] for client in own}, own)
        for client in own:
            ours, theirs = fusing.of(client).mailbox.take(client), alone.mailbox.take(client)
            assert_array_equal(ours.arrays["targets"], theirs.arrays["targets"])
    assert cost == alone_cost


def test_clients_receive_nothing_from_other_tasks():
    task_of = {0: 1, 1: 0, 2: 1, 3: 0, 4: 2}
    fusing = TaskwiseFusion(KnFu(beta=1.0), known)
    fusing.move(task_of)
    fusing.fuse(1, uploads(1, task_of), range(N))
    report = fusing.report()
    assert report.clients == report.present == tuple(range(N))
    same = np.array([[task_of[a] == task_of[b] for b in range(N)] for a in range(N)])
    assert_array_equal(report.weights > 0, same)
    np.testing.assert_allclose(report.weights.sum(axis=1), 1.0)
    for why in (report.distances, report.left_out):
        # Whoever is alone at a task has nobody to do without.
        assert_array_equal(np.isnan(why) & ~np.eye(N, dtype=bool), ~same)


def test_shared_guidance_waits_only_for_clients_at_the_task():
    task_of = {0: 0, 1: 0, 2: 1, 3: 0, 4: 1}
    fusing = TaskwiseFusion(FedMD(), known)
    fusing.move(task_of)
    fusing.fuse(1, uploads(1, {0: 0, 1: 0}), range(N))
    assert fusing.of(3).mailbox.take_missed(3) is not None
    assert fusing.of(2).mailbox.take_missed(2) is None and fusing.of(4).mailbox.take_missed(4) is None


def test_targets_of_a_task_that_all_have_left_are_forgotten():
    fusing = TaskwiseFusion(REMEMBERS, known)
    fusing.move(dict.fromkeys(range(N), 0))
    fusing.fuse(1, uploads(1, dict.fromkeys(range(N), 0)), range(N))
    assert any(name.startswith(("task/0/memory/", "task/0/last/")) for name in fusing.state())
    fusing.move({0: 0, 1: 1, 2: 1, 3: 1, 4: 1})
    assert any(name.startswith("task/0/memory/") for name in fusing.state())
    fusing.move(dict.fromkeys(range(N), 1))
    fusing.begin(range(N))
    assert not any("memory" in name or "last" in name for name in fusing.state())


def test_weight_exchange_treats_all_tasks_as_one():
    @dataclass(frozen=True)
    class Weights(FusionStrategy):
        name = "weights"
        capabilities: ClassVar[Capabilities] = Capabilities(needs={"weights"})
        seen: list[Knowledge] = field(default_factory=list)

        def fuse(self, knowledge, memory):
            self.seen.append(knowledge)
            return Guidance(None, memory={"rounds": memory.get("rounds", np.zeros(1)) + 1})

        def loss(self, student_logits, targets):
            raise NotImplementedError

    strategy = Weights()
    fusing = TaskwiseFusion(strategy, known)
    for round, task_of in enumerate([{0: 0, 1: 1}, {0: 1, 1: 2}], start=1):
        fusing.move(task_of)
        fusing.fuse(round, uploads(round, {0: 0, 1: 0}), range(2))
    assert [knowledge.clients for knowledge in strategy.seen] == [(0, 1), (0, 1)]
    assert fusing.state()["task/0/memory/rounds"].tolist() == [2.0]


def test_a_restored_fusion_by_task_continues_exactly():
    task_of = {0: 1, 1: 0, 2: 1, 3: 0, 4: 2}
    straight, restored = TaskwiseFusion(REMEMBERS, known), TaskwiseFusion(REMEMBERS, known)
    straight.move(task_of)
    straight.begin(range(N))
    straight.fuse(1, uploads(1, {client: task_of[client] for client in (0, 1, 2, 3)}), range(N))
    restored.move(task_of)
    restored.restore(straight.state())
    assert {k: v.tobytes() for k, v in restored.state().items()} == {
        k: v.tobytes() for k, v in straight.state().items()
    }
    for fusing in (straight, restored):
        fusing.move(task_of | {4: 0})
        fusing.begin(range(N))
        fusing.fuse(2, uploads(2, {1: 0, 2: 1, 4: 0}), range(N))
    for client in range(N):
        ours, theirs = straight.of(client).mailbox.take(client), restored.of(client).mailbox.take(client)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert_array_equal(ours.arrays["targets"], theirs.arrays["targets"])


def test_a_client_in_two_reports_has_its_weights_in_its_last_place():
    """The cache has knowledge of client 1 for the task that it left."""
    left = FusionReport((0, 1), np.array([[0.75, 0.25], [0.5, 0.5]]), (0,))
    now = FusionReport((1, 2), np.array([[0.25, 0.75], [0.0, 1.0]]), (1, 2))
    found = merged_reports([left, now])
    assert found.clients == (0, 1, 1, 2) and found.present == (0, 1, 2)
    counts = dict(zip(found.clients, found.weights.tolist(), strict=True))
    assert counts == {0: [0.75, 0.0, 0.25, 0.0], 1: [0.5, 0.0, 0.25, 0.75], 2: [0.0, 0.0, 0.0, 1.0]}


def test_a_report_on_one_task_is_unchanged():
    report = FusionReport((0, 2), np.eye(2), (0, 2))
    assert merged_reports([report]) is report
