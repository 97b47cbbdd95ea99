"""The actor of the Ray engine: a process that owns some of the clients."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from flwr.app import ArrayRecord, Context, Message
from ray import get_runtime_context

from fedkd.engine.grid import keep_freed_memory
from fedkd.engine.live_clients import LiveClients
from fedkd.federation import assume_identity, client_of_node
from fedkd.plugins import contain_plugin
from fedkd.tracking import TemporaryFolder

ID_BYTES = 32
"""Length of a message's id; see `fedkd.federation.compat.assign_message_id`."""

Part = tuple[Message, Mapping[str, int]]
"""A message, and the numbers of the held records that belong into it, by name."""


class Workload(Protocol):
    """A ClientApp and the contexts of an actor's clients, made inside the actor."""

    def app(self, message: Message, context: Context) -> Message:
        """Handle a message."""

    def together(self, requests: Sequence[tuple[Message, Context]]) -> list[Message | Exception]:
        """Handle messages of one kind to several clients at once; an exception where a client failed."""

    def context(self, client: int) -> Context:
        """Return the context that a client keeps for the whole run."""


class ClientActor:
    """Owner of some clients' live state for the run; imports `module` at once, if given."""

    def __init__(self, module: str | None = None) -> None:
        os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
        self._held: dict[int, ArrayRecord] = {}  # by number
        self._uses: dict[int, int] = {}  # messages still to come that share a record
        if module is not None:
            with suppress(Exception):  # `open` raises it again
                import_module(module)

    def open(self, note: str, make_workload: Any, *arguments: Any) -> str:
        """Make the workload of read-only `arguments`, noting work in `note`; return the node's id."""
        assume_identity()
        keep_freed_memory()
        self._note = WorkNote(note)
        with contain_plugin():
            self._workload: Workload = make_workload(*arguments)
        room = getattr(self._workload, "room", None)  # None: for all
        self._clients = LiveClients(self._workload.app, self._workload.context, self._workload.together, room)
        return get_runtime_context().get_node_id()

    def hold(self, uses: Sequence[tuple[int, int]], *records: ArrayRecord) -> None:
        """Keep records that later messages share, by number and count of uses, fetched once."""
        for (number, times), record in zip(uses, records, strict=True):
            self._held[number], self._uses[number] = record, times

    def handle(self, parts: Sequence[Part]) -> list[Message]:
        return self._clients.handle_together(self._begin(parts))

    def handle_keeping(self, parts: Sequence[Part]) -> tuple[list[Message], dict[int, ArrayRecord]]:
        """Handle messages one by one; return the replies, and the clients' known states by client."""
        messages = self._begin(parts)
        done = [self._clients.handle_keeping(message) for message in messages]
        states = {
            client_of_node(message.metadata.dst_node_id): state
            for message, (_, state) in zip(messages, done, strict=True)
            if state is not None
        }
        return [reply for reply, _ in done], states

    def renew(self, client: int, states: Mapping[int, ArrayRecord] | None) -> None:
        """Rebuild a client with its state among `states`; None: the initial one."""
        self._clients.renew(client, None if states is None else states[client])

    def _begin(self, parts: Sequence[Part]) -> list[Message]:
        for message, places in parts:
            for name, number in places.items():
                message.content[name] = self._held[number]
                self._uses[number] -= 1
                if not self._uses[number]:
                    del self._held[number], self._uses[number]
        messages = [message for message, _ in parts]
        self._note.begin(messages[0].metadata.message_id if len(messages) == 1 else "")
        return messages


# A finished reply may be lost with its actor, so the first message without a reply need not have caused its
# death. Each actor therefore writes the message that it begins into a small file, within microseconds.


class WorkNote:
    """An actor's note of its current message, in a file of the driver; no note on other nodes."""

    def __init__(self, path: str) -> None:
        try:
            self._file: int | None = os.open(path, os.O_WRONLY)
        except OSError:
            self._file = None

    def begin(self, message_id: str) -> None:
        if self._file is not None:
            os.pwrite(self._file, message_id.encode().ljust(ID_BYTES)[:ID_BYTES], 0)


class WorkNotes:
    """The driver's files of notes, one for each actor."""

    def __init__(self, actors: int) -> None:
        self._folder = TemporaryFolder("fedkd-actors-")
        self.paths = [str(self._folder.path / str(actor)) for actor in range(actors)]
        for actor in range(actors):
            self.clear(actor)

    def clear(self, actor: int) -> None:
        Path(self.paths[actor]).write_bytes(bytes(ID_BYTES))  # room, so that no note finds the disk full

    def read(self, actor: int) -> str | None:
        """Return the id of the last message that an actor began; None: unknown."""
        try:
            return Path(self.paths[actor]).read_bytes().strip(b"\0 ").decode() or None
        except (OSError, UnicodeDecodeError):  # gone, or not a note
            return None

    def close(self) -> None:
        self._folder.close()
