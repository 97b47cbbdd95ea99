"""The nodes of a Ray cluster: total and free resources, and losses."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from fedkd.engine.compat import free_resources, node_of_actor

DEATH_SECONDS = 60.0
"""Longest wait for Ray's verdict on a silent node, which takes fifteen seconds and more."""
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Node:
    """A machine of a Ray cluster, named by its address, with a port if nodes share it."""

    cpus: float
    gpus: float = 0.0
    name: str = ""
    id: str = ""


def alive_nodes() -> tuple[Node, ...]:
    """Return the nodes that Ray reports as alive, by name."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    at_address = Counter(node["NodeManagerAddress"] for node in alive)
    nodes = []
    for node in alive:
        address, has = node["NodeManagerAddress"], node["Resources"]
        name = address if at_address[address] == 1 else f"{address}:{node['NodeManagerPort']}"
        nodes.append(Node(has.get("CPU", 0.0), has.get("GPU", 0.0), name, node["NodeID"]))
    return tuple(sorted(nodes, key=lambda node: node.name))


def free_nodes(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Return the nodes with their free resources; all of them if unknown."""
    free = free_resources()
    if free is None:
        return tuple(nodes)
    left = ((node, free.get(node.id, {})) for node in nodes)
    return tuple(replace(node, cpus=own.get("CPU", 0.0), gpus=own.get("GPU", 0.0)) for node, own in left)


def own_node() -> str:
    """Return the id of this process's node, or of the node of its connection."""
    import ray

    return ray.get_runtime_context().get_node_id()


def lost_node(actor: Any, error: Exception) -> str | None:
    """Return the address of an actor's dead node, found within `DEATH_SECONDS`; None: the node lives."""
    from ray.exceptions import ActorDiedError

    node_id = node_of_actor(actor)
    if node_id is None:
        return None
    deadline = time.monotonic() + (0.0 if isinstance(error, ActorDiedError) else DEATH_SECONDS)
    while (address := _dead(node_id)) is None:
        if time.monotonic() >= deadline or _is_settled(actor):
            return _dead(node_id)
        time.sleep(POLL_SECONDS)
    return address


def is_dead(node: Node) -> bool:
    return _dead(node.id) is not None


def _dead(node_id: str) -> str | None:
    import ray

    dead = (node for node in ray.nodes() if node["NodeID"] == node_id and not node["Alive"])
    return next((node["NodeManagerAddress"] for node in dead), None)


def _is_settled(actor: Any) -> bool:
    """Return whether an actor is dead for good, or reachable again."""
    import ray
    from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

    try:
        ray.get(actor.__ray_ready__.remote(), timeout=1.0)
    except (ActorUnavailableError, GetTimeoutError):
        return False
    except RayError:
        return True
    return True
