"""Messages out, replies in: every client's, in client order, whatever node it runs on."""

from __future__ import annotations

import time
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedkd.errors import Interrupted, RunFailed, UserError
from fedkd.federation import messages as msg
from fedkd.federation.replies import failure_of, first_line
from fedkd.federation.run_control import RunControl


class Messenger:
    """Sends messages to clients, and turns a client's failure into the run's.

    Args:
        grid: The federation; one node per client.
        clients: Number of clients.
        control: Whom to tell of the progress, and when the run is being stopped.

    Attributes:
        node_of_client: Client index to node id, in client order.
    """

    def __init__(self, grid: Grid, clients: int, control: RunControl) -> None:
        self._grid = grid
        self._control = control
        self.node_of_client = _identify(grid, clients)

    def send(self, round: int, phase: str, messages: Iterable[Message]) -> dict[int, Message]:
        """Send messages and return the replies by client, in client order.

        Raises:
            RunFailed: A client failed, or did not answer.
            Interrupted: The actors were stopped together with the run.
            UserError: A client found that the scenario is to blame.
        """
        client_of_node = {node: client for client, node in self.node_of_client.items()}
        sent = sorted(messages, key=lambda message: client_of_node[message.metadata.dst_node_id])
        if hasattr(self._grid, "on_reply"):
            self._grid.on_reply = lambda done, total: self._control.observer.phase(round, phase, done, total)
        self._control.observer.phase(round, phase, 0, len(sent))
        replies = {client_of_node[r.metadata.src_node_id]: r for r in self._grid.send_and_receive(sent)}
        replies = {client: replies[client] for client in sorted(replies)}
        failed = {client: reply for client, reply in replies.items() if reply.has_error()}
        if failed:
            # What was lost because another client took its actor down is not where the trouble lies.
            causes = [client for client, reply in failed.items() if reply.error.code != msg.NOT_HANDLED]
            client = (causes or list(failed))[0]
            if failed[client].error.code == msg.CLIENT_DIED and self._control.stop_requested():
                # Whoever signals the whole process group (timeout, a batch system) stops Ray's processes too.
                raise Interrupted(f"stopped in round {round}; the last checkpoint is saved")
            raise failure_of(failed[client], client, round, self._control.folder)
        for message in sent:
            client = client_of_node[message.metadata.dst_node_id]
            if client not in replies:
                raise RunFailed(f"no reply to the {phase} message", client=client, round=round)
        return replies


def _identify(grid: Grid, expected: int) -> dict[int, int]:
    """Ask every node which client it simulates: on Flower's runtimes node ids say nothing."""
    nodes = _wait_for_nodes(grid, expected)
    replies = grid.send_and_receive([Message(RecordDict(), node, msg.IDENTIFY) for node in nodes])
    node_of_client = {}
    for reply in replies:
        if reply.has_error():
            raise RunFailed(first_line(reply))
        node_of_client[msg.sender(reply)] = reply.metadata.src_node_id
    if sorted(node_of_client) != list(range(expected)):
        raise UserError(
            f"the federation has {len(nodes)} nodes for {expected} clients; give it one node per client"
            f" (Flower: num-supernodes={expected})",
            key="data.clients",
        )
    return dict(sorted(node_of_client.items()))


def _wait_for_nodes(grid: Grid, expected: int, patience: float = 60.0) -> list[int]:
    """Return the grid's nodes as soon as there are enough of them, or after `patience` seconds."""
    deadline = time.monotonic() + patience
    while len(nodes := sorted(grid.get_node_ids())) < expected and time.monotonic() < deadline:
        time.sleep(0.5)
    return nodes
