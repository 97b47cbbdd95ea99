"""The Ray engine: a Flower grid over a pool of actors, each of which owns some of the clients."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import ray
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from ray.exceptions import RayError, RayTaskError

from fedkd.engine.grid import EngineGrid, answer, error_reply
from fedkd.engine.schedule import assign_clients
from fedkd.engine.work_note import WorkNote, WorkNotes
from fedkd.federation.identity import assume_identity, client_of, with_content
from fedkd.federation.messages import CLIENT_DIED, NOT_HANDLED
from fedkd.plugins import contained

POLL_SECONDS = 0.1


class Workload(Protocol):
    """What an actor runs: a ClientApp and the contexts of its clients. Made inside the actor."""

    def app(self, message: Message, context: Context) -> Message:
        """Handle a message."""

    def together(self, requests: Sequence[tuple[Message, Context]]) -> list[Message | Exception]:
        """Handle messages of one kind to several clients at once; an exception where a client failed."""

    def context(self, client: int) -> Context:
        """Return the context that a client keeps for the whole run."""


class ClientActor:
    """Owns some clients: their live state stays here while the run lasts.

    Args:
        note: The file in which it notes what it works on.
        make_workload: Called with `arguments` to make the `Workload`, in the actor's process.
        arguments: Its arguments; object references have been resolved to shared, read-only arrays.
    """

    def __init__(self, note: str, make_workload: Any, *arguments: Any) -> None:
        os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
        assume_identity()
        self._note = WorkNote(note)
        self._contexts: dict[int, Context] = {}
        self._failure: Exception | None = None
        try:
            with contained():
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

    def handle(self, parts: Sequence[tuple[Message, Sequence[str]]], *shared: ArrayRecord) -> list[Message]:
        """Handle one message, or messages of one kind to several clients together.

        Args:
            parts: Messages without the records that they share with others, and the names of these records.
            shared: The records of all parts in their order, read from the object store.
        """
        records = iter(shared)
        for message, names in parts:
            for name in names:
                message.content[name] = next(records)
        if len(parts) == 1:
            message, _ = parts[0]
            self._note.begin(message.metadata.message_id)
            return [answer(self._work, message, client_of(message.metadata.dst_node_id))]
        self._note.begin("")  # it may be any of them
        requests = [(message, self._context(client_of(message.metadata.dst_node_id))) for message, _ in parts]
        return [
            error_reply(message, outcome) if isinstance(outcome, Exception) else outcome
            for (message, _), outcome in zip(requests, self._workload.together(requests), strict=True)
        ]

    def _work(self, message: Message, client: int) -> Message:
        return self._workload.app(message, self._context(client))

    def _context(self, client: int) -> Context:
        if client not in self._contexts:
            self._contexts[client] = self._workload.context(client)
        return self._contexts[client]


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
        messages_per_call: Messages that an actor is handed at once, for executors that train several clients
            together. One: replies come, and progress is told, client by client.
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
        messages_per_call: int = 1,
    ) -> None:
        super().__init__(len(costs))
        self._messages_per_call = messages_per_call
        assume_identity()
        owned = assign_clients(costs, actors)
        self._owner = {client: actor for actor, clients in enumerate(owned) for client in clients}
        self._priority = {client: place for clients in owned for place, client in enumerate(clients)}
        references = [ray.put(argument) for argument in arguments]
        actor_class = ray.remote(ClientActor).options(num_cpus=cpus_per_actor, num_gpus=gpus_per_actor)
        self._notes = WorkNotes(actors)
        self._actors: list[Any] = [
            actor_class.remote(note, make_workload, *references) for note in self._notes.paths
        ]

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
        waiting: dict[Any, list[Message]] = {}  # in the order in which each actor works through them
        for actor, batch in self._calls(messages):
            parts, references = [], []
            for message in batch:
                light, names, own = _without_shared(message, shared)
                parts.append((light, names))
                references += own
            waiting[self._actors[actor].handle.remote(parts, *references)] = batch
        place = {reference: number for number, reference in enumerate(waiting)}
        died_with: dict[int, list[int]] = {}  # actor to the clients one of which it died of
        while waiting:
            done, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=POLL_SECONDS)
            for reference in sorted(done, key=place.__getitem__):
                try:
                    replies = ray.get(reference)
                except RayError as error:
                    unanswered = [message for batch in waiting.values() for message in batch]
                    replies = [self._lost(lost, error, unanswered, died_with) for lost in waiting[reference]]
                del waiting[reference]
                yield from replies

    def _calls(self, messages: Sequence[Message]) -> Iterator[tuple[int, list[Message]]]:
        """Yield what each actor is handed at once, most expensive clients first."""
        by_priority = sorted(messages, key=lambda m: self._priority[client_of(m.metadata.dst_node_id)])
        if self._messages_per_call == 1:
            yield from ((self._owner[client_of(m.metadata.dst_node_id)], [m]) for m in by_priority)
            return
        for actor in range(len(self._actors)):
            own = [m for m in by_priority if self._owner[client_of(m.metadata.dst_node_id)] == actor]
            for start in range(0, len(own), self._messages_per_call):
                yield actor, own[start : start + self._messages_per_call]

    def _lost(
        self,
        message: Message,
        error: RayError,
        waiting: Iterable[Message],
        died_with: dict[int, list[int]],
    ) -> Message:
        """Return the error reply to a message whose actor died.

        All that an actor had yet to do is lost with it, and so may replies be that it had yet to send.
        """
        client = client_of(message.metadata.dst_node_id)
        actor = self._owner[client]
        if actor not in died_with:
            died_with[actor] = self._suspects(actor, waiting)
        first, *others = died_with[actor]
        if client != first:
            reason = f"its Ray actor died while it worked for client {_one_of(died_with[actor])}"
            return Message(Error(NOT_HANDLED, reason), reply_to=message)
        cause = str(error).strip().rpartition("Worker exit detail: ")[-1].splitlines()[0]
        doubt = f" in the work for it or for client {_one_of(others)}" if others else ""
        return Message(Error(CLIENT_DIED, f"its Ray actor died{doubt}: {cause}"), reply_to=message)

    def _suspects(self, actor: int, waiting: Iterable[Message]) -> list[int]:
        """Return the client that a dead actor worked for, or all of its that it may have been.

        Args:
            actor: The actor.
            waiting: The messages without a reply, of all actors, in the order of their work.
        """
        noted = self._notes.read(actor)
        unanswered = {
            other.metadata.message_id: client
            for other in waiting
            if self._owner[client := client_of(other.metadata.dst_node_id)] == actor
        }
        return [unanswered[noted]] if noted in unanswered else list(unanswered.values())

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
        self._notes.close()


def _one_of(clients: Sequence[int]) -> str:
    """Return the clients as one names alternatives: ``2``, ``2 or 4``, ``2, 4 or 6``."""
    *others, last = map(str, clients)
    return f"{', '.join(others)} or {last}" if others else last


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
