"""Some nodes of a federation, seen as a Flower grid of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedkd.federation.compat import Run


class NodeSubset(Grid):
    """A grid that shows only some nodes of another one, in a fixed order.

    Flower's strategies draw their clients with a global generator. Shown a subset and told to take all of it,
    they have nothing left to draw.

    Args:
        grid: The whole federation.
        node_ids: The nodes to show.
    """

    def __init__(self, grid: Grid, node_ids: Sequence[int]) -> None:
        self._grid = grid
        self._node_ids = list(node_ids)

    def set_run(self, run: Run) -> None:
        """Set the run of the whole grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the whole grid."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message to one node."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes of the subset."""
        return list(self._node_ids)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages through the whole grid."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies from the whole grid."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send and receive through the whole grid."""
        return self._grid.send_and_receive(messages, timeout=timeout)


def nodes_in_client_order(node_of_client: Mapping[int, int], clients: Iterable[int]) -> list[int]:
    """Return the node ids of `clients`, ascending by client."""
    return [node_of_client[client] for client in sorted(clients)]
