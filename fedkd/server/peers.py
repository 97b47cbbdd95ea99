"""Fusion without a server: every client fuses its neighbours' knowledge, computed in one place."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from fedkd.fusion import (
    Arrays,
    FusionStrategy,
    Guidance,
    Knowledge,
    is_undirected,
    metropolis_weights,
    push_sum_weights,
)
from fedkd.plan import Graph
from fedkd.server.fusing import Fusing, ServerKnowledge
from fedkd.server.guidance import check_guidance, tables_of
from fedkd.server.knowledge_cache import Upload
from fedkd.server.mailbox import GuidanceParcel
from fedkd.server.reports import FusionReport, Links, report_of
from fedkd.storage import add_prefix, group_by_number, strip_prefix
from fedkd.training import one_blas_thread

MEMORIES, HEARD = "memories/", "heard/"


@dataclass(frozen=True)
class PeerTopology:
    """The links between clients, from the scenario's `topology`."""

    graph: Graph
    mixing: str | None = None
    relay: bool = False

    def matrix(self, heard: np.ndarray) -> np.ndarray:
        """Return the mixing weights over links `[N, N]`, float64 (see `fedkd.fusion.weights.mixing`)."""
        plain = is_undirected(heard) if self.mixing is None else self.mixing == "metropolis"
        return metropolis_weights(heard) if plain else push_sum_weights(heard)


class _Made(NamedTuple):
    guidance: Guidance
    knowledge: Knowledge
    tables: dict[int, Arrays]


class PeerFusing(Fusing):
    """Fuse each client's received knowledge, and keep guidance until it is sent.

    Only participants get guidance. A strategy's memory is each client's own. With `stale_decay`, clients keep
    every author's newest knowledge. With `relay` they pass it on: a receiver asks its neighbours for newer
    knowledge than its own, each item once.
    """

    def __init__(self, strategy: FusionStrategy, known: ServerKnowledge, peers: PeerTopology) -> None:
        super().__init__(strategy, known)
        self._peers = peers
        self._memories: dict[int, Mapping[str, np.ndarray]] = {}
        self._heard: dict[int, dict[int, Upload]] = {}

    def fuse(
        self,
        round: int,
        uploads: Mapping[int, Upload],
        everyone: Iterable[int],
        elsewhere: Collection[int] = (),
        *,
        backward: bool = False,
        awaited: int = 0,
    ) -> int:
        """Fuse the round's knowledge at every client; return the bytes received (other arguments: unused)."""
        self.report = self.links = None
        if not uploads or self.strategy.capabilities.sends == "nothing":
            return 0
        clients = tuple(sorted(uploads))
        heard = self._peers.graph.edges(round)[np.ix_(clients, clients)]
        uploads = {client: uploads[client] for client in clients}
        with one_blas_thread():
            if self.strategy.capabilities.over_graph == "mixed":
                self._mix(round, uploads, heard)
            else:
                self._fuse_each(round, uploads, heard)
        assert self.links is not None
        return self.links.total

    def _mix(self, round: int, uploads: Mapping[int, Upload], heard: np.ndarray) -> None:
        """Fuse all clients at once, under mixing weights among equal architectures."""
        knowledge = self._knowledge(round, uploads)
        if knowledge.server is not None:
            kinds = np.array([knowledge.server.architecture_of(client) for client in uploads])
            heard = heard & (kinds[:, None] == kinds[None, :])
        knowledge = replace(knowledge, mixing=self._peers.matrix(heard))
        guidance = self.strategy.fuse(knowledge, self._memory)
        check_guidance(guidance, knowledge)
        self._memory = dict(guidance.memory)
        if guidance.weights is not None:
            self.report = report_of(guidance, guidance.weights, knowledge.clients, knowledge.clients)
        for client, table in tables_of(guidance, knowledge)[0].items():
            if table:
                self.mailbox.put(client, GuidanceParcel(round, table))
        others = heard & ~np.eye(len(heard), dtype=bool)
        sizes = others * np.array([upload.sent for upload in uploads.values()], dtype=np.int64)
        self.links = Links(knowledge.clients, others, sizes)

    def _fuse_each(self, round: int, uploads: Mapping[int, Upload], heard: np.ndarray) -> None:
        """Fuse for every client, once for those with equal knowledge."""
        clients = tuple(uploads)
        known = self._hear(uploads, heard)
        nothing: Mapping[str, np.ndarray] = {}
        made: dict[tuple[object, ...], _Made] = {}
        own: dict[int, _Made] = {}
        for client in clients:
            memory = self._memories.get(client, nothing)
            key = (id(memory), *((author, id(upload)) for author, upload in known[client].items()))
            if key not in made:
                knowledge = self._knowledge(round, known[client])
                guidance = self.strategy.fuse(knowledge, memory)
                check_guidance(guidance, knowledge)
                made[key] = _Made(guidance, knowledge, tables_of(guidance, knowledge)[0])
            own[client] = made[key]
        for client, result in own.items():
            # Equal memories stay one object, so that clients with equal knowledge stay together.
            self._memories[client] = result.guidance.memory
            if table := result.tables[client]:
                self.mailbox.put(client, GuidanceParcel(round, table))
        self.report = _report(own) if all(one.guidance.weights is not None for one in own.values()) else None

    def _hear(self, uploads: Mapping[int, Upload], heard: np.ndarray) -> dict[int, dict[int, Upload]]:
        """Return every client's knowledge after the round, by author, and set `links`."""
        clients = tuple(uploads)
        keeps = self.strategy.capabilities.stale_decay is not None
        if keeps:  # copied: the arrays may lie in shared memory that is only lent for the round
            uploads = {client: upload.kept() for client, upload in uploads.items()}
        others = heard & ~np.eye(len(heard), dtype=bool)
        sizes = np.zeros(heard.shape, dtype=np.int64)
        known: dict[int, dict[int, Upload]] = {}
        for row, client in enumerate(clients):
            table = dict(self._heard.get(client, {})) if keeps else {}
            table[client] = uploads[client]
            senders = np.flatnonzero(others[row]).tolist()
            for column in senders:
                author = clients[column]
                table[author] = uploads[author]
                sizes[row, column] += uploads[author].sent
            if keeps and self._peers.relay:
                for author, column in self._newer(table, [(clients[column], column) for column in senders]):
                    upload = self._heard[clients[column]][author]
                    table[author] = upload
                    sizes[row, column] += upload.sent
            known[client] = dict(sorted(table.items()))
        if keeps:
            self._heard |= known
        self.links = Links(clients, others, sizes)
        return known

    def _newer(
        self, table: Mapping[int, Upload], senders: Iterable[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        """Return the authors with newer knowledge at a sender before the round, and its column."""
        newest: dict[int, tuple[int, int]] = {}
        for sender, column in senders:
            for author, upload in self._heard.get(sender, {}).items():
                least = newest[author][0] if author in newest else 0
                if author in table:
                    least = max(least, table[author].round)
                if upload.round > least:
                    newest[author] = (upload.round, column)
        return [(author, column) for author, (_, column) in sorted(newest.items())]

    def state(self) -> dict[str, np.ndarray]:
        """Return the state that later rounds depend on, shared objects once."""
        arrays = super().state()
        memories: dict[int, list[int]] = {}
        for client in sorted(self._memories):
            memories.setdefault(id(self._memories[client]), []).append(client)
        for number, clients in enumerate(memories.values()):
            arrays |= add_prefix(f"{MEMORIES}{number}/arrays/", self._memories[clients[0]])
            arrays[f"{MEMORIES}{number}/clients"] = np.array(clients)
        numbers: dict[int, int] = {}
        for client, table in sorted(self._heard.items()):
            for author, upload in table.items():
                if id(upload) not in numbers:
                    number = numbers[id(upload)] = len(numbers)
                    arrays |= add_prefix(f"{HEARD}uploads/{number}/arrays/", upload.arrays)
                    arrays[f"{HEARD}uploads/{number}/about"] = np.array(
                        [author, upload.round, upload.samples, upload.sent]
                    )
            arrays[f"{HEARD}by/{client}"] = np.array([numbers[id(upload)] for upload in table.values()])
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        super().restore(arrays)
        self._memories, self._heard = {}, {}
        for own in group_by_number(strip_prefix(MEMORIES, arrays)).values():
            self._memories |= dict.fromkeys(own["clients"].tolist(), strip_prefix("arrays/", own))
        uploads: dict[int, tuple[int, Upload]] = {}
        for number, own in group_by_number(strip_prefix(f"{HEARD}uploads/", arrays)).items():
            author, round, samples, sent = map(int, own["about"])
            uploads[number] = (author, Upload(round, strip_prefix("arrays/", own), samples, sent))
        for client, known in strip_prefix(f"{HEARD}by/", arrays).items():
            self._heard[int(client)] = dict(uploads[int(number)] for number in known)


def _report(own: Mapping[int, _Made]) -> FusionReport:
    authors = sorted({author for made in own.values() for author in made.knowledge.clients})
    place = {author: position for position, author in enumerate(authors)}
    weights = np.eye(len(authors))
    distances = np.full(weights.shape, np.nan)
    np.fill_diagonal(distances, 0.0)
    mixed: dict[int, np.ndarray] = {}
    fresh = True
    for client, (guidance, knowledge, _) in own.items():
        assert guidance.weights is not None
        row, among = knowledge.clients.index(client), [place[author] for author in knowledge.clients]
        weights[place[client]] = 0.0
        weights[place[client], among] = guidance.weights[row]
        if guidance.distances is not None:
            distances[place[client], among] = guidance.distances[row]
        if guidance.mixed is not None:
            mixed[client] = guidance.mixed[row]
        fresh &= knowledge.age is None or not knowledge.age.any()
    known = any(made.guidance.distances is not None for made in own.values())
    # Old knowledge differs from its author's present mix.
    whole = fresh and len(mixed) == len(authors)
    guidance = Guidance(
        targets=None,
        distances=distances if known else None,
        mixed=np.stack([mixed[author] for author in authors]) if whole else None,
    )
    return report_of(guidance, weights, tuple(authors), tuple(own))
