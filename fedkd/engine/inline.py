"""The inline engine: every client in this process, one after the other, for debugging and for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flwr.app import ArrayRecord, Context, Message

from fedkd.engine.grid import EngineGrid
from fedkd.engine.live_clients import LiveClients
from fedkd.federation.identity import assume_identity, client_of


class InlineGrid(EngineGrid):
    """Runs a ClientApp in this process.

    Args:
        app: The ClientApp.
        make_context: Client index to the context it keeps for the whole run.
        num_clients: Number of clients N.
        keeps_states: Whether a client that fails is again what it was before the message: the state of every
            client is kept once more, after each message.
    """

    def __init__(
        self,
        app: Callable[[Message, Context], Message],
        make_context: Callable[[int], Context],
        num_clients: int,
        *,
        keeps_states: bool = False,
    ) -> None:
        super().__init__(num_clients)
        assume_identity()
        self._clients = LiveClients(app, make_context)
        self._states: dict[int, ArrayRecord] | None = {} if keeps_states else None

    def _execute(self, messages: list[Message]) -> Iterator[Message]:
        for message in messages:
            if self._states is None:
                yield self._clients.handle(message)
                continue
            reply, state = self._clients.handle_keeping(message)
            client = client_of(message.metadata.dst_node_id)
            if state is not None:
                self._states[client] = state
            elif reply.has_error():
                self._clients.renew(client, self._states.get(client))
            yield reply

    def close(self) -> None:
        """Forget every client."""
        self._clients.clear()
