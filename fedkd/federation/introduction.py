"""Find out, before the first round, which node is which client."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedkd.errors import RunFailed, UserError
from fedkd.federation import messages as msg
from fedkd.federation.messages import failure_of
from fedkd.federation.run_control import Deployment

PATIENCE = 60.0
"""Seconds in which a simulation's nodes have to be there."""
POLL = 0.5
KEY = "data.clients"


def identify(grid: Grid, expected: int, deployment: Deployment | None = None) -> dict[int, int]:
    """Return the node id of every client, in client order; on Flower's runtimes all nodes are asked.

    Args:
        grid: The federation.
        expected: Number of clients N.
        deployment: Of nodes with data of their own; None: a simulation.

    Raises:
        UserError: A client is missing, is there twice, or is of another federation.
        RunFailed: A node could not say who it is.
    """
    if hasattr(grid, "node_of_client"):
        return dict(grid.node_of_client)
    patience = PATIENCE if deployment is None else deployment.patience
    nodes = _wait_for_nodes(grid, expected, patience)
    asked = [Message(RecordDict(), node, msg.IDENTIFY) for node in nodes]
    within = None if deployment is None else patience
    replies = list(grid.send_and_receive(asked, timeout=within)) if asked else []
    for reply in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
        if reply.has_error():
            raise failure_of(reply, None, None)
    nodes_of: dict[int, list[int]] = {}
    for reply in replies:
        nodes_of.setdefault(msg.sender(reply), []).append(reply.metadata.src_node_id)
    _check_all_there(nodes_of, expected, len(nodes), within)
    _check_federation(replies, deployment)
    return {client: nodes_of[client][0] for client in range(expected)}


def _check_all_there(
    nodes_of: Mapping[int, list[int]], expected: int, nodes: int, patience: float | None
) -> None:
    """Refuse a federation in which a client is missing, or two nodes are one client.

    The nodes, of which `nodes` were asked, had `patience` seconds to come; None: it is a simulation.
    """
    for client, claimed in sorted(nodes_of.items()):
        if client >= expected:
            raise UserError(
                f"a node says that it is client {client}; there are {expected}, from client 0 on"
                f" (a simulation of Flower's: num-supernodes={expected})",
                key=KEY,
            )
        if len(claimed) > 1:
            ids = " and ".join(map(str, sorted(claimed)))
            raise UserError(f"{len(claimed)} nodes say that they are client {client}: {ids}", key=KEY)
    missing = [client for client in range(expected) if client not in nodes_of]
    if missing:
        hint = f"; give it one node per client (Flower: num-supernodes={expected})"
        waited = hint if patience is None else f" after {patience:g} s"
        raise UserError(
            f"the federation has {nodes} nodes for {expected} clients{waited}; missing: {_clients(missing)}",
            key=KEY,
        )


def _check_federation(replies: Iterable[Message], deployment: Deployment | None) -> None:
    """Refuse a node whose scenario or transfer set is not the server's."""
    for reply in sorted(replies, key=msg.sender):
        said = reply.content.config_records[msg.IDENTITY].get(msg.FEDERATION)
        client = msg.sender(reply)
        if deployment is None and said is not None:
            raise RunFailed("has a share of its own, the server has none (run-config: data)", client=client)
        if deployment is not None and said is None:
            raise RunFailed("has no share of its own (node-config: data)", client=client)
        if deployment is not None and said != deployment.federation:
            raise UserError(
                f"client {client} is of another federation: its scenario, its classes or its transfer set is"
                " not the server's",
                key="node-config.data",
            )


def _clients(indices: list[int]) -> str:
    """Return clients in words; of many the first."""
    shown = ", ".join(map(str, indices[:10]))
    return f"client{'s' if len(indices) > 1 else ''} {shown}{', …' if len(indices) > 10 else ''}"


def _wait_for_nodes(grid: Grid, expected: int, patience: float) -> list[int]:
    """Return the grid's nodes as soon as there are enough of them, or after `patience` seconds."""
    deadline = time.monotonic() + patience
    while len(nodes := sorted(grid.get_node_ids())) < expected and time.monotonic() < deadline:
        time.sleep(POLL)
    return nodes
