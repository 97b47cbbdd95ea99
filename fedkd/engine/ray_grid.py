"""The Ray engine: a Flower grid over a pool of actors, each of which owns some of the clients."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import ray
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from ray.exceptions import RayError, RayTaskError

from fedkd.engine.grid import EngineGrid, answer
from fedkd.engine.schedule import assign_clients
from fedkd.federation.identity import assume_identity, client_of, with_content
from fedkd.federation.messages import CLIENT_DIED, NOT_HANDLED

POLL_SECONDS = 0.1


class Workload(Protocol):
    """What an actor runs: a ClientApp and the contexts of its clients. Made inside the actor."""

    def app(self, message: Message, context: Context) -> Message:
        """Handle a message."""

    def context(self, client: int) -> Context:
        """Return the context that a client keeps for the whole run."""


class ClientActor:
    """Owns some clients: their live state stays here while the run lasts.

    Args:
        make_workload: Called with `arguments` to make the `Workload`, in the actor's process.
        arguments: Its arguments; object references have been resolved to shared, read-only arrays.
    """

    def __init__(self, make_workload: Any, *arguments: Any) -> None:
        os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
        assume_identity()
        self._contexts: dict[int, Context] = {}
        self._failure: Exception | None = None
        try:
            self._workload: Workload = make_workload(*arguments)
        except Exception as error:  # of one that leaves a constructor, Ray passes on nothing but the text
            self._failure = error

    def ready(self) -> bool:
        """Answer once the actor is up.

        Raises:
            Exception: What the workload raised while it was being made.
        """
        if self._failure is not None:
            raise self._failure
        return True

    def handle(self, message: Message, names: Sequence[str], *shared: ArrayRecord) -> Message:
        """Handle one message.

        Args:
            message: The message, without the records that it shares with others.
            names: Names of these records.
            shared: The records, read from the object store.
        """
        for name, record in zip(names, shared, strict=True):
            message.content[name] = record
        return answer(self._work, message, client_of(message.metadata.dst_node_id))

    def _work(self, message: Message, client: int) -> Message:
        if client not in self._contexts:
            self._contexts[client] = self._workload.context(client)
        return self._workload.app(message, self._contexts[client])


class RayGrid(EngineGrid):
    """Runs a ClientApp on Ray actors.

    Each client is owned by one actor as long as the grid lives. An actor works through its messages most
    expensive client first, so that no long job is left for the end.

    Args:
        make_workload: Called in every actor with `arguments`; returns its `Workload`.
        arguments: Arguments of `make_workload`; large ones are put into the object store once and shared.
        costs: Cost of every client's round, in any unit.
        actors: Number of actors.
        cpus_per_actor: CPUs each reserves.
        gpus_per_actor: GPUs each reserves; fractions share one.
    """

    def __init__(
        self,
        make_workload: Any,
        arguments: Sequence[Any],
        costs: Sequence[float],
        *,
        actors: int,
        cpus_per_actor: float = 1.0,
        gpus_per_actor: float = 0.0,
    ) -> None:
        super().__init__(len(costs))
        assume_identity()
        owned = assign_clients(costs, actors)
        self._owner = {client: actor for actor, clients in enumerate(owned) for client in clients}
        self._priority = {client: place for clients in owned for place, client in enumerate(clients)}
        references = [ray.put(argument) for argument in arguments]
        actor_class = ray.remote(ClientActor).options(num_cpus=cpus_per_actor, num_gpus=gpus_per_actor)
        self._actors: list[Any] = [actor_class.remote(make_workload, *references) for _ in range(actors)]

    def wait_until_ready(self) -> None:
        """Return when every actor is up.

        Raises:
            Exception: What the workload raised while it was being made.
        """
        try:
            ray.get([actor.ready.remote() for actor in self._actors])
        except RayTaskError as error:
            raise error.cause from error

    def _execute(self, messages: list[Message]) -> Iterator[Message]:
        shared = self._put_shared_records(messages)
        by_priority = sorted(messages, key=lambda m: self._priority[client_of(m.metadata.dst_node_id)])
        waiting: dict[Any, Message] = {}  # in the order in which each actor works through them
        for message in by_priority:
            light, names, references = _without_shared(message, shared)
            actor = self._actors[self._owner[client_of(message.metadata.dst_node_id)]]
            waiting[actor.handle.remote(light, names, *references)] = message
        place = {reference: number for number, reference in enumerate(waiting)}
        died_with: dict[int, int] = {}  # actor to the client it was working for when it died
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=POLL_SECONDS)
            for reference in sorted(done, key=place.__getitem__):
                try:
                    reply = ray.get(reference)
                except RayError as error:
                    reply = self._lost(waiting[reference], error, waiting.values(), died_with)
                del waiting[reference]
                yield reply

    def _lost(
        self, message: Message, error: RayError, waiting: Iterable[Message], died_with: dict[int, int]
    ) -> Message:
        """Return the error reply to a message whose actor died.

        All that an actor had yet to do is lost with it; the first of it was the work that it died of.
        """
        client = client_of(message.metadata.dst_node_id)
        actor = self._owner[client]
        if actor not in died_with:
            unanswered = (client_of(other.metadata.dst_node_id) for other in waiting)
            died_with[actor] = next(other for other in unanswered if self._owner[other] == actor)
        if died_with[actor] == client:
            cause = str(error).strip().rpartition("Worker exit detail: ")[-1].splitlines()[0]
            failure = Error(CLIENT_DIED, f"its Ray actor died: {cause}")
        else:
            failure = Error(NOT_HANDLED, f"its Ray actor died while it worked for client {died_with[actor]}")
        return Message(failure, reply_to=message)

    @staticmethod
    def _put_shared_records(messages: list[Message]) -> dict[int, ray.ObjectRef]:
        """Put every record that more than one message carries into the object store, once."""
        uses: Counter[int] = Counter()
        records: dict[int, ArrayRecord] = {}
        for message in messages:
            for record in message.content.array_records.values():
                uses[id(record)] += 1
                records[id(record)] = record
        return {key: ray.put(records[key]) for key, number in uses.items() if number > 1}

    def close(self) -> None:
        """Stop the actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []


def _without_shared(
    message: Message, shared: dict[int, ray.ObjectRef]
) -> tuple[Message, list[str], list[ray.ObjectRef]]:
    """Return the message without its shared records, their names, and where they lie."""
    records = message.content.array_records
    names = [name for name, record in records.items() if id(record) in shared]
    if not names:
        return message, [], []
    kept = RecordDict({name: record for name, record in message.content.items() if name not in names})
    return with_content(message, kept), names, [shared[id(records[name])] for name in names]
