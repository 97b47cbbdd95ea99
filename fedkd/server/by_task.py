"""Fusion in a stream of tasks: each task's clients by themselves."""

from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np

from fedkd.fusion import FusionStrategy
from fedkd.scenario import CacheSettings
from fedkd.server.fusing import MODEL, PENDING, Fusing, ServerKnowledge
from fedkd.server.knowledge_cache import KnowledgeCache, Upload, evict
from fedkd.server.mailbox import GuidanceParcel
from fedkd.server.peers import PeerFusing, PeerTopology
from fedkd.server.reports import FusionReport, Links, merged_links, merged_reports
from fedkd.storage import add_prefix, group_by_number, strip_prefix

TASK = "task/"


class TaskwiseFusion:
    """Fuse each task by itself.

    A strategy that does not fuse by task (`Capabilities.fuses_by_task`) sees all clients at one task.

    Args:
        knowledge_cache: Settings of the cache for absent clients and other tasks; None: no cache.
        backward: True if clients at another task get guidance too, if the cache has their knowledge.
        exponent: Of `staleness`, in asynchronous rounds; None: they are synchronous.
        peers: Links between clients; None: there is a server.
    """

    def __init__(
        self,
        strategy: FusionStrategy,
        known: Callable[[int], ServerKnowledge],
        knowledge_cache: CacheSettings | None = None,
        *,
        backward: bool = False,
        exponent: float | None = None,
        peers: PeerTopology | None = None,
    ) -> None:
        self._strategy, self._known, self._knowledge_cache = strategy, known, knowledge_cache
        self._backward, self._exponent, self._peers = backward, exponent, peers
        self._task_of: dict[int, int] = {}  # empty: all clients are at the first task
        self._at: set[int] = set()
        self._by_task: dict[int, Fusing] = {}

    def move(self, task_of: Mapping[int, int]) -> None:
        """Set clients' tasks, the first by default; without a cache, drop tasks without clients."""
        if not self._strategy.capabilities.fuses_by_task:
            return
        self._at = set(task_of.values()) or {0}
        self._task_of = dict(task_of) if any(self._at) else {}
        if self._knowledge_cache is None:
            self._by_task = {task: fusing for task, fusing in self._by_task.items() if task in self._at}

    def task_of(self, client: int | None) -> int:
        """Return a client's task; the first for an unknown client (None)."""
        return 0 if client is None else self._task_of.get(client, 0)

    def at(self, task: int) -> Fusing:
        if task not in self._by_task:
            known, fusing = self._known(task), None
            if self._peers is not None:
                fusing = PeerFusing(self._strategy, known, self._peers)
            decay = None if self._knowledge_cache is None else self._knowledge_cache.decay
            self._by_task[task] = fusing or Fusing(self._strategy, known, decay, self._exponent)
        return self._by_task[task]

    def of(self, client: int | None) -> Fusing:
        return self.at(self.task_of(client))

    def of_clients(self, clients: Collection[int | None]) -> dict[int, Fusing]:
        """Return the fusing of every task of some clients, by task, ascending."""
        tasks = {self.task_of(client) for client in clients} if self._task_of else {0} if clients else set()
        return {task: self.at(task) for task in sorted(tasks)}

    def take_old(self, client: int | None) -> dict[int, GuidanceParcel]:
        """Take a client's newest waiting guidance of other known tasks, by task."""
        found: dict[int, GuidanceParcel] = {}
        if client is None or not self._backward:
            return found
        for task, fusing in sorted(self._by_task.items()):
            knows = task != self.task_of(client) and fusing.cache.has(client)
            if knows and (parcel := fusing.mailbox.take_missed(client)) is not None:
                found[task] = parcel
        return found

    def begin(self, clients: Collection[int]) -> None:
        """Leave initial guidance for all clients before a task's first round.

        If no client is known, the first task begins.
        """
        for task, fusing in self.of_clients(clients or [None]).items():
            fusing.begin([c for c in clients if self.task_of(c) == task] if self._task_of else clients)

    def fuse(
        self, round: int, uploads: Mapping[int, Upload], everyone: Iterable[int], *, awaited: int = 0
    ) -> int:
        """Fuse the knowledge of a round, task by task (see `Fusing.fuse`)."""
        known = list(everyone)
        for fusing in self._by_task.values():
            fusing.report = fusing.links = None
            fusing.figures = {}
        sent = 0
        for task, fusing in self.of_clients(uploads).items():
            own = {client: upload for client, upload in uploads.items() if self.task_of(client) == task}
            here = [c for c in known if self.task_of(c) == task] if self._task_of else known
            elsewhere = set(known).difference(here) if self._task_of else ()
            sent += fusing.fuse(round, own, here, elsewhere, backward=self._backward, awaited=awaited)
        if self._knowledge_cache is not None and self._knowledge_cache.megabytes is not None:
            evict(self._caches(), int(self._knowledge_cache.megabytes * 1e6))
        return sent

    def cache_bytes(self) -> int | None:
        """Return the bytes of the cache; None: there is none."""
        return None if self._knowledge_cache is None else sum(cache.size for cache in self._caches().values())

    def _caches(self) -> dict[int, KnowledgeCache]:
        return {task: fusing.cache for task, fusing in self._by_task.items()}

    def report(self) -> FusionReport | None:
        """Return the weights among clients of the last fusion, within tasks."""
        found = [fusing.report for _, fusing in sorted(self._by_task.items()) if fusing.report is not None]
        return merged_reports(found) if found else None

    def figures(self) -> dict[str, float]:
        """Return the strategy's figures of the last fusion by metric, of the last task that has them."""
        return {k: v for _, fusing in sorted(self._by_task.items()) for k, v in fusing.figures.items()}

    def links(self) -> Links | None:
        """Return the links used in the last fusion; None: a server, or no messages."""
        found = [fusing.links for _, fusing in sorted(self._by_task.items()) if fusing.links is not None]
        return merged_links(found) if found else None

    def state(self) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {}
        for task, fusing in sorted(self._by_task.items()):
            arrays |= add_prefix(f"{TASK}{task}/", fusing.state())
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from a `state`, after `move`."""
        saved = group_by_number(strip_prefix(TASK, arrays))
        for task in sorted(saved.keys() | self._at):
            self.at(task).restore(saved.get(task, {}))


def model_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights sent with messages, from a `state` without a stream; else nothing."""
    return strip_prefix(f"{TASK}0/{MODEL}", arrays)


def is_pending_guidance(name: str) -> bool:
    """Return whether an array of a `state` is waiting guidance, which stays constant."""
    return name.removeprefix(TASK).partition("/")[2].startswith(PENDING) if name.startswith(TASK) else False
