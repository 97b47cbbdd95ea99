"""Peer-to-peer fusion on a graph."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.fusion.distillation.fedmd import FedMD
from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.distillation.ktpfl import KTpFL
from fedkd.fusion.prototypes.fd import FD
from fedkd.fusion.strategy import Guidance
from fedkd.plan.graph import Graph
from fedkd.server.by_task import TaskwiseFusion
from fedkd.server.fusing import Fusing, ServerKnowledge
from fedkd.server.knowledge_cache import Upload
from fedkd.server.peers import PeerFusing, PeerTopology

N, M, C = 6, 8, 4
SENT = 100


def upload(client: int, round: int) -> Upload:
    """Return what a client says in a round; it weighs 100 bytes and its number."""
    logits = np.random.default_rng([client, round]).normal(0, 2, (M, C)).astype(np.float32)
    return Upload(round, {"logits": logits}, 10 * (client + 1), SENT + client)


def uploads(round: int, clients=range(N)) -> dict[int, Upload]:
    return {client: upload(client, round) for client in clients}


def peers(strategy, kind: str = "complete", *, relay: bool = False, **graph) -> PeerFusing:
    return PeerFusing(strategy, ServerKnowledge(), PeerTopology(Graph(N, kind, 3, **graph), relay=relay))


def listed(*hears: list[int]) -> tuple:
    return (tuple(map(tuple, hears)),)


def taken(fusing: Fusing) -> dict[int, dict[str, bytes]]:
    """Take what waits for every client."""
    waiting = {client: fusing.mailbox.take(client) for client in range(N)}
    return {
        client: {name: values.tobytes() for name, values in sorted(parcel.arrays.items())}
        for client, parcel in waiting.items()
        if parcel is not None
    }


def probabilities(client: int, round: int) -> np.ndarray:
    z = upload(client, round).arrays["logits"].astype(np.float64)
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


STRATEGIES = [
    KnFu(beta=2.0),
    KnFu(beta=2.0, distribution_momentum=0.5, neighbours=3),
    KTpFL(temperature=1.0, rho=0.01),
    FedMD(),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=["knfu", "momentum", "ktpfl", "fedmd"])
def test_a_complete_graph_equals_a_server_bit_for_bit(strategy):
    server, clients = Fusing(strategy, ServerKnowledge()), peers(strategy)
    for round in (1, 2, 3):
        server.fuse(round, uploads(round), range(N))
        clients.fuse(round, uploads(round), range(N))
        assert taken(clients) == taken(server)
        assert_array_equal(clients.report.weights, server.report.weights)
        if server.report.left_out is not None:
            assert_array_equal(clients.report.left_out, server.report.left_out)


def test_a_ring_of_three_equals_a_complete_graph():
    three = [
        PeerFusing(KnFu(beta=1.0), ServerKnowledge(), PeerTopology(Graph(3, kind, 3)))
        for kind in ("ring", "complete")
    ]
    for fusing in three:
        fusing.fuse(1, uploads(1, range(3)), range(3))
    assert taken(three[0]) == taken(three[1])


def test_weights_equal_knfus_among_neighbours():
    """``W_nm ∝ A_nm exp(−β KL(p_n ‖ p_m))``, and W need not be symmetric where A is."""
    fusing = peers(KnFu(beta=2.0), "ring")
    fusing.fuse(1, uploads(1), range(N))
    q = np.stack([probabilities(client, 1) for client in range(N)])
    p = q.mean(axis=1)
    heard = Graph(N, "ring", 0).edges(1)
    expected = np.zeros((N, N))
    for n in range(N):
        for m in np.flatnonzero(heard[n]):
            expected[n, m] = math.exp(-2.0 * float((p[n] * np.log(p[n] / p[m])).sum()))
        expected[n] /= expected[n].sum()
    assert_allclose(fusing.report.weights, expected, atol=1e-5)
    assert np.isnan(fusing.report.distances[~heard]).all()
    assert not np.allclose(expected, expected.T)
    targets = np.stack([fusing.mailbox.take(client).arrays["targets"] for client in range(N)])
    assert_allclose(targets, np.einsum("nm,mic->nic", expected, q), atol=1e-5)


def test_without_links_clients_learn_from_themselves():
    fusing = peers(KnFu(beta=0.0), "file", listed=listed(*[[]] * N))
    assert fusing.fuse(1, uploads(1), range(N)) == 0
    assert_array_equal(fusing.report.weights, np.eye(N))
    for client in range(N):
        own = fusing.mailbox.take(client).arrays["targets"]
        assert_allclose(own, probabilities(client, 1), atol=1e-6)


def test_absent_peers_neither_send_nor_receive():
    fusing = peers(FedMD(), "ring")
    there = (0, 1, 3, 4)  # of the ring 0 1 2 3 4 5 the links 0–1 and 3–4 are left
    received = fusing.fuse(1, uploads(1, there), range(N))
    z = {client: upload(client, 1).arrays["logits"] for client in there}
    pairs = {0: (0, 1), 1: (0, 1), 3: (3, 4), 4: (3, 4)}
    for client, pair in pairs.items():
        mean = (z[pair[0]].astype(np.float64) + z[pair[1]]) / 2
        assert_allclose(fusing.mailbox.take(client).arrays["targets"], mean, atol=1e-6)
    assert all(fusing.mailbox.take(away) is fusing.mailbox.take_missed(away) is None for away in (2, 5))
    assert fusing.links.clients == there and received == 4 * SENT + 0 + 1 + 3 + 4


def test_links_carry_what_their_senders_sent():
    fusing = peers(KnFu(), "one_peer_exponential")
    total = fusing.fuse(2, uploads(2), range(N))  # client n hears n + 2
    assert_array_equal(fusing.links.heard, np.roll(np.eye(N, dtype=bool), 2, axis=1))
    assert fusing.links.sizes[0].tolist() == [0, 0, SENT + 2, 0, 0, 0]
    assert total == fusing.links.total == sum(SENT + client for client in range(N))


class Ages(KnFu):
    """Writes down who is how old in the fusion of each client."""

    seen: ClassVar[list[dict[int, int]]] = []

    def fuse(self, knowledge, memory):
        self.seen.append(dict(zip(knowledge.clients, knowledge.age.tolist(), strict=True)))
        return super().fuse(knowledge, memory)


def ages_of(fusing: PeerFusing, round: int, clients=range(N)) -> list[dict[int, int]]:
    Ages.seen.clear()
    fusing.fuse(round, uploads(round, clients), range(N))
    return list(Ages.seen)


def test_relayed_knowledge_ages_a_round_per_link():
    fusing = peers(Ages(stale_decay=0.5), "ring", relay=True)
    assert ages_of(fusing, 1)[0] == {0: 0, 1: 0, 5: 0}
    assert ages_of(fusing, 2)[0] == {0: 0, 1: 0, 5: 0, 2: 1, 4: 1}
    assert ages_of(fusing, 3)[0] == ages_of(fusing, 4)[0] == {0: 0, 1: 0, 5: 0, 2: 1, 4: 1, 3: 2}
    # Two links to neighbours; over each one that is a link further, and the farthest from one of them.
    assert fusing.links.sizes[0].tolist() == [0, (SENT + 1) + (SENT + 2) + (SENT + 3), 0, 0, 0, 209]
    weights, q = (
        fusing.report.weights[0],
        [probabilities(m, 4 - age) for m, age in enumerate([0, 0, 1, 2, 1, 0])],
    )
    p = [one.mean(axis=0) for one in q]
    score = [
        math.exp(-10.0 * float((p[0] * np.log(p[0] / p[m])).sum())) * 0.5**age
        for m, age in enumerate([0, 0, 1, 2, 1, 0])
    ]
    assert_allclose(weights, np.array(score) / sum(score), atol=1e-4)


def test_without_relays_clients_keep_received_knowledge():
    fusing = peers(Ages(stale_decay=0.5), "matching")
    graph, known = Graph(N, "matching", 3), {0: 0}
    for round in (1, 2, 3):
        heard = set(np.flatnonzero(graph.edges(round)[0]).tolist())
        known = {author: age + 1 for author, age in known.items()} | dict.fromkeys(heard, 0)
        assert ages_of(fusing, round)[0] == dict(sorted(known.items()))
    # Who is away keeps what it has; nobody hears it meanwhile.
    known = {author: age + 2 for author, age in known.items()}
    ages_of(fusing, 4, range(1, N))
    heard = set(np.flatnonzero(graph.edges(5)[0]).tolist())
    assert ages_of(fusing, 5)[0] == dict(sorted((known | dict.fromkeys(heard, 0)).items()))


@pytest.mark.parametrize(
    "strategy",
    [KnFu(beta=1.0, stale_decay=0.5, distribution_momentum=0.5), KTpFL(temperature=1.0, rho=0.01)],
    ids=["relayed", "learned"],
)
def test_restored_peers_continue_exactly(strategy):
    def fusing() -> PeerFusing:
        return peers(strategy, "matching", relay=strategy.capabilities.stale_decay is not None)

    unbroken, before, after = fusing(), fusing(), fusing()
    for round in (1, 2, 3):
        for one in (unbroken, before):
            one.fuse(round, uploads(round, [0, 1, 2, 4, 5]), range(N))
    saved = before.state()
    after.restore({name: values.copy() for name, values in saved.items()})
    for one in (unbroken, after):
        taken(one)
        one.fuse(4, uploads(4), range(N))
    assert taken(after) == taken(unbroken)
    assert_array_equal(after.links.sizes, unbroken.links.sizes)
    assert {name: values.tobytes() for name, values in after.state().items()} == {
        name: values.tobytes() for name, values in unbroken.state().items()
    }


def test_knowledge_of_a_task_stays_among_its_clients():
    fusing = TaskwiseFusion(
        FedMD(), lambda task: ServerKnowledge(), peers=PeerTopology(Graph(N, "complete", 0))
    )
    task_of = {0: 0, 1: 1, 2: 0, 3: 1, 4: 1, 5: 0}
    fusing.move(task_of)
    received = fusing.fuse(1, uploads(1), range(N))
    links = fusing.links()
    same = np.array([[task_of[n] == task_of[m] and n != m for m in range(N)] for n in range(N)])
    assert_array_equal(links.heard, same)
    assert links.total == received == 2 * sum(SENT + client for client in range(N))
    z = [upload(client, 1).arrays["logits"].astype(np.float64) for client in (1, 3, 4)]
    assert_allclose(fusing.of(3).mailbox.take(3).arrays["targets"], np.mean(z, axis=0), atol=1e-6)


def test_guidance_without_targets_is_personal():
    counts, answers = np.arange(C), np.eye(C, dtype=np.float32)
    sent = {
        client: Upload(1, {"label_logits": (client + 1) * answers, "label_counts": counts}, 10)
        for client in range(N)
    }
    fusing = peers(FD(), "ring")
    fusing.fuse(1, sent, range(N))
    own = fusing.mailbox.take(0).arrays
    assert own["owners"].tolist() == [0, 2, 2, 2]  # two others, who both own all labels but the first
    assert_allclose(own["label_logits"][2], [0, 0, (2 + 6) / 2, 0])
    assert fusing.report is None and fusing.links.heard.sum() == 2 * N


def test_a_wrong_result_of_a_strategy_is_reported():
    class Wrong(FedMD):
        def fuse(self, knowledge, memory):
            return Guidance(np.full((2, C), np.nan, np.float32))

    with pytest.raises(ValueError, match="targets have shape"):
        peers(Wrong(), "ring").fuse(1, uploads(1), range(N))
