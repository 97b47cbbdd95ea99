"""Room for actors where others work too: what is free on each node, waited for where it is not enough."""

from __future__ import annotations

import time
from collections.abc import Callable

from fedkd.engine.ray_nodes import free_nodes
from fedkd.engine.ray_pool import RayCluster, count_actors, fitting, gpu_share
from fedkd.errors import EngineLost
from fedkd.scenario.schema import Engine

SETTLE_SECONDS = 3.0
"""How long what is reserved may be that of actors that are just being stopped."""
POLL_SECONDS = 0.2


def room_for_actors(
    engine: Engine, cluster: RayCluster, number: int, tell: Callable[[str], None] = lambda line: None
) -> int:
    """Return how many actors to start: as many as fit what is free on the nodes, one by one.

    A cluster of this run's own is free. On another one, fewer actors than would fit an idle cluster are
    enough, unless the scenario says how many it wants; where there is no room at all it is waited for.

    Args:
        engine: What an actor reserves, and how long to wait.
        cluster: The cluster.
        number: Blocks of clients: there are no more actors than that.
        tell: Told that others hold the room.

    Raises:
        UserError: They would not fit if the cluster were idle (see `count_actors`).
        EngineLost: There is no room after `Engine.start_timeout`.
    """
    wanted = count_actors(engine, cluster, number)
    if cluster.alone:
        return wanted
    share, began, waits = gpu_share(engine, cluster, number), time.monotonic(), False
    while True:
        nodes = free_nodes(cluster.nodes)
        fits = fitting(engine, nodes, share)
        if fits >= wanted:
            return wanted
        waited = time.monotonic() - began
        if waited >= SETTLE_SECONDS:
            if fits and engine.actors is None:
                tell(f"others work on the Ray cluster: there is room for {fits} actors, not for {wanted}")
                return fits
            if waited >= engine.start_timeout:
                break
            if not waits:
                waits = True
                tell(f"waiting for room on the Ray cluster: for {fits} of {wanted} actors there is some now")
        cluster.watch.check()
        time.sleep(POLL_SECONDS)
    free_cpus, free_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    raise EngineLost(
        f"the Ray cluster had room for {fits} of {wanted} actors after {engine.start_timeout:g} s"
        f" (engine.start_timeout): others hold all but {free_cpus:g} of its {cluster.cpus:g} CPUs and"
        f" {free_gpus:g} of its {cluster.gpus:g} GPUs"
    )
