"""The live clients of a process; idle ones are written to disk, failed ones restored."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict

from fedkd.engine.grid import answer, error_reply
from fedkd.engine.idle_states import IdleStates
from fedkd.engine.room import Room
from fedkd.errors import described
from fedkd.federation import arrays_to_record, client_of_node, record_to_arrays
from fedkd.federation.messages import records as msg
from fedkd.plugins import contain_plugin

App = Callable[[Message, Context], Message]
Together = Callable[[Sequence[tuple[Message, Context]]], "list[Message | Exception]"]
"""Returns a reply to each request, or an exception."""

STATELESS = frozenset({msg.IDENTIFY, msg.EXPORT_STATE, msg.SHOW, msg.TRY_OUT})
"""Message types that leave client state unchanged."""


class LiveClients:
    """Clients' contexts, made on first use by `make_context`.

    If the room is full, the state of the least recently used client is written to disk, unless the disk has
    it already. It is read back later, to the same bytes. A client without any message has no state.
    `together` handles messages of one kind to several clients at once.
    """

    def __init__(
        self,
        app: App,
        make_context: Callable[[int], Context],
        together: Together | None = None,
        room: Room | None = None,
    ) -> None:
        self._app, self._make_context, self._together = app, make_context, together
        self._room = room or Room()
        self._contexts: dict[int, Context] = {}  # least recently used first
        self._states = IdleStates(self._room.folder)  # of idle clients, and initial ones of others
        self._unchanged: set[int] = set()  # live clients whose state on disk, if any, is valid

    def handle(self, message: Message) -> Message:
        return answer(self._work, message, client_of_node(message.metadata.dst_node_id))

    def handle_together(self, messages: Sequence[Message]) -> list[Message]:
        """Handle a message of one kind for each client; exceptions become error replies."""
        if len(messages) == 1:
            return [self.handle(messages[0])]
        assert self._together is not None
        needed = {client_of_node(message.metadata.dst_node_id) for message in messages}
        outcomes: dict[int, Message | Exception] = {}
        requests: dict[int, tuple[Message, Context]] = {}
        for number, message in enumerate(messages):
            client = client_of_node(message.metadata.dst_node_id)
            try:
                with contain_plugin():
                    requests[number] = message, self.context(client, needed)
                    self._note(message, client)
            except Exception as error:
                outcomes[number] = error
        with np.errstate(all="ignore"):
            done = self._together(list(requests.values())) if requests else []
        outcomes |= zip(requests, done, strict=True)
        told = [(message, outcomes[number]) for number, message in enumerate(messages)]
        return [error_reply(m, outcome) if isinstance(outcome, Exception) else outcome for m, outcome in told]

    def _work(self, message: Message, client: int) -> Message:
        kind = message.metadata.message_type
        if client not in self._contexts:
            # An idle client's state needs no room in memory.
            if kind == msg.EXPORT_STATE and client in self._states:
                return _reply(message, client, arrays_to_record(self._states.get(client)))
            if kind == msg.IMPORT_STATE and self._is_full:
                self._states.put(client, record_to_arrays(message.content.array_records[msg.STATE]))
                return _reply(message, client)
        context = self.context(client)
        self._note(message, client)
        return self._app(message, context)

    def context(self, client: int, needed: Collection[int] = ()) -> Context:
        """Return the context of a client; `needed` clients stay in memory."""
        if client in self._contexts:
            self._contexts[client] = self._contexts.pop(client)
            return self._contexts[client]
        self._make_room(needed)
        context = self._make_context(client)
        if client in self._states:
            state = arrays_to_record(self._states.get(client))
            self._ask(context, msg.IMPORT_STATE, RecordDict({msg.STATE: state}))
        self._contexts[client] = context
        self._unchanged.add(client)
        return context

    @property
    def _is_full(self) -> bool:
        return self._room.clients is not None and len(self._contexts) >= self._room.clients

    def _make_room(self, needed: Collection[int]) -> None:
        while self._is_full:
            client = next((client for client in self._contexts if client not in needed), None)
            if client is None:
                return
            if client not in self._unchanged:
                try:
                    reply = self._ask(self._contexts[client], msg.EXPORT_STATE, RecordDict())
                    self._states.put(client, record_to_arrays(reply.content.array_records[msg.STATE]))
                except Exception as error:  # another client's reply reports it
                    raise RuntimeError(f"cannot save idle client {client}: {described(error)}") from error
            self._forget(client)

    def _note(self, message: Message, client: int) -> None:
        kind = message.metadata.message_type
        if kind == msg.EVALUATE and not self._room.evaluation_changes:
            changes = bool(msg.GUIDED & message.content.keys())
        else:
            changes = kind not in STATELESS
        if changes:
            self._unchanged.discard(client)

    def _forget(self, client: int) -> None:
        self._contexts.pop(client, None)
        self._unchanged.discard(client)

    def handle_keeping(self, message: Message) -> tuple[Message, ArrayRecord | None]:
        """Handle a client's message; return the reply, and its state if changed and known."""
        reply, client = self.handle(message), client_of_node(message.metadata.dst_node_id)
        if not changed_by(message, reply):
            return reply, None
        try:
            with contain_plugin():
                if client not in self._contexts and client in self._states:
                    return reply, arrays_to_record(self._states.get(client))
                told = self._ask(self.context(client), msg.EXPORT_STATE, RecordDict())
                # Copied: a record shares its arrays with the client, which changes them later.
                state = record_to_arrays(told.content.array_records[msg.STATE])
                return reply, arrays_to_record({name: values.copy() for name, values in state.items()})
        except Exception as error:
            return error_reply(message, error), None

    def renew(self, client: int, state: ArrayRecord | None) -> None:
        """Rebuild a client from a state before its next message; None: the initial one."""
        self._forget(client)
        self._states.drop(client)
        if state is not None:
            self._states.put(client, record_to_arrays(state))

    def _ask(self, context: Context, kind: str, content: RecordDict) -> Message:
        return self._app(Message(content, context.node_id, kind), context)

    def clear(self) -> None:
        self._contexts.clear()
        self._unchanged.clear()
        self._states.clear()


def changed_by(message: Message, reply: Message) -> bool:
    """Return whether a client may have changed with its reply to a message."""
    return not reply.has_error() and message.metadata.message_type not in STATELESS


def _reply(message: Message, client: int, state: ArrayRecord | None = None) -> Message:
    told = RecordDict({msg.IDENTITY: msg.identity(client)})
    if state is not None:
        told[msg.STATE] = state
    return Message(told, reply_to=message)
