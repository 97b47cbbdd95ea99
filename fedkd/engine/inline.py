"""The inline engine: every client in this process, one by one, for debugging and tests."""

from collections.abc import Callable, Iterator

from flwr.app import Context, Message

from fedkd.engine.grid import Blocks, EngineGrid, keep_freed_memory
from fedkd.engine.idle_states import IdleStates
from fedkd.engine.live_clients import LiveClients, Together
from fedkd.engine.room import Room
from fedkd.federation import arrays_to_record, assume_identity, client_of_node, record_to_arrays


class InlineGrid(EngineGrid):
    """Run a ClientApp in this process; with `keeps_states`, failed clients are restored."""

    def __init__(
        self,
        app: Callable[[Message, Context], Message],
        make_context: Callable[[int], Context],
        num_clients: int,
        *,
        blocks: Blocks | None = None,
        together: Together | None = None,
        keeps_states: bool = False,
        room: Room | None = None,
    ) -> None:
        super().__init__(num_clients)
        assume_identity()
        keep_freed_memory()
        self._clients = LiveClients(app, make_context, together, room)
        self._blocks = blocks or Blocks.alone(num_clients)
        self._states = IdleStates((room or Room()).folder) if keeps_states else None

    def _execute(self, messages: list[Message]) -> Iterator[Message]:
        if self._states is None:
            for own in self._blocks.split(messages):
                yield from self._clients.handle_together(own)
            return
        for message in messages:
            reply, state = self._clients.handle_keeping(message)
            client = client_of_node(message.metadata.dst_node_id)
            if state is not None:
                self._states.put(client, record_to_arrays(state))
            elif reply.has_error():
                kept = arrays_to_record(self._states.get(client)) if client in self._states else None
                self._clients.renew(client, kept)
            yield reply

    def close(self) -> None:
        self._clients.clear()
        if self._states is not None:
            self._states.clear()
