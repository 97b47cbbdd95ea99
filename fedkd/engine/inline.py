"""The inline engine: every client in this process, one after the other, for debugging and for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flwr.app import Context, Message

from fedkd.engine.grid import EngineGrid, answer
from fedkd.federation.identity import assume_identity, client_of


class InlineGrid(EngineGrid):
    """Runs a ClientApp in this process.

    Args:
        app: The ClientApp.
        make_context: Client index to the context it keeps for the whole run.
        num_clients: Number of clients N.
    """

    def __init__(
        self,
        app: Callable[[Message, Context], Message],
        make_context: Callable[[int], Context],
        num_clients: int,
    ) -> None:
        super().__init__(num_clients)
        assume_identity()
        self._app = app
        self._make_context = make_context
        self._contexts: dict[int, Context] = {}

    def _execute(self, messages: list[Message]) -> Iterator[Message]:
        for message in messages:
            yield answer(self._work, message, client_of(message.metadata.dst_node_id))

    def _work(self, message: Message, client: int) -> Message:
        if client not in self._contexts:
            self._contexts[client] = self._make_context(client)
        return self._app(message, self._contexts[client])

    def close(self) -> None:
        """Forget every client."""
        self._contexts.clear()
