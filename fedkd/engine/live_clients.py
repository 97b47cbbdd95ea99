"""The clients that live in a process, and how one that failed becomes again what it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict

from fedkd.engine.grid import answer, error_reply
from fedkd.federation import messages as msg
from fedkd.federation.arrays import from_record, to_record
from fedkd.federation.identity import client_of
from fedkd.plugins import contained

App = Callable[[Message, Context], Message]
Together = Callable[[Sequence[tuple[Message, Context]]], "list[Message | Exception]"]
"""Returns the replies in the order of the requests; an exception where a client failed."""

LEAVE_NO_TRACE = frozenset({msg.IDENTIFY, msg.EXPORT_STATE})
"""Messages that no client is another one after."""


class LiveClients:
    """Clients' contexts, made when they are needed.

    Args:
        app: Handles a message.
        make_context: Client index to the context that it keeps.
        together: Handles messages of one kind to several clients at once; None: nobody hands over such.
    """

    def __init__(
        self, app: App, make_context: Callable[[int], Context], together: Together | None = None
    ) -> None:
        self._app = app
        self._together = together
        self._make_context = make_context
        self._contexts: dict[int, Context] = {}
        self._waiting: dict[int, ArrayRecord] = {}  # states to begin with

    def handle(self, message: Message) -> Message:
        """Let a client handle a message; an exception becomes an error reply."""
        return answer(self._work, message, client_of(message.metadata.dst_node_id))

    def handle_together(self, messages: Sequence[Message]) -> list[Message]:
        """Let clients handle a message each, all of one kind; an exception becomes an error reply."""
        if len(messages) == 1:
            return [self.handle(messages[0])]
        assert self._together is not None
        replies: dict[int, Message] = {}
        requests: dict[int, tuple[Message, Context]] = {}
        for number, message in enumerate(messages):
            try:
                with contained():
                    requests[number] = message, self.context(client_of(message.metadata.dst_node_id))
            except Exception as error:
                replies[number] = error_reply(message, error)
        with np.errstate(all="ignore"):
            outcomes = self._together(list(requests.values())) if requests else []
        for (number, (message, _)), outcome in zip(requests.items(), outcomes, strict=True):
            replies[number] = error_reply(message, outcome) if isinstance(outcome, Exception) else outcome
        return [replies[number] for number in range(len(messages))]

    def _work(self, message: Message, client: int) -> Message:
        return self._app(message, self.context(client))

    def context(self, client: int) -> Context:
        """Return the context of a client."""
        if client not in self._contexts:
            context = self._make_context(client)
            if client in self._waiting:
                self._ask(context, msg.IMPORT_STATE, RecordDict({msg.STATE: self._waiting[client]}))
                del self._waiting[client]
            self._contexts[client] = context
        return self._contexts[client]

    def handle_keeping(self, message: Message) -> tuple[Message, ArrayRecord | None]:
        """Let a client handle a message; return the reply, and what the client is then.

        The latter is None where that is unknown, after an error, or what it was before.
        """
        reply = self.handle(message)
        if not changed_by(message, reply):
            return reply, None
        try:
            with contained():
                return reply, self._state_of(client_of(message.metadata.dst_node_id))
        except Exception as error:
            return error_reply(message, error), None

    def _state_of(self, client: int) -> ArrayRecord:
        reply = self._ask(self.context(client), msg.EXPORT_STATE, RecordDict())
        # Copied: a record shares its arrays with the client, which goes on.
        state = from_record(reply.content.array_records[msg.STATE])
        return to_record({name: values.copy() for name, values in state.items()})

    def renew(self, client: int, state: ArrayRecord | None) -> None:
        """Have a client made anew before it handles another message.

        Args:
            client: Client index.
            state: What it is then; None: as in the beginning.
        """
        self._contexts.pop(client, None)
        self._waiting.pop(client, None)
        if state is not None:
            self._waiting[client] = state

    def _ask(self, context: Context, kind: str, content: RecordDict) -> Message:
        return self._app(Message(content, context.node_id, kind), context)

    def clear(self) -> None:
        """Forget everybody."""
        self._contexts.clear()
        self._waiting.clear()


def changed_by(message: Message, reply: Message) -> bool:
    """Return whether a client may be another one after it has answered a message."""
    return not reply.has_error() and message.metadata.message_type not in LEAVE_NO_TRACE
