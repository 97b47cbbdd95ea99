"""Number of actors that fit a Ray cluster, and each actor's share of a GPU."""

import sys
import time
from collections.abc import Callable, Iterable
from math import ceil

from fedkd.engine.ray.cluster import RayCluster
from fedkd.engine.ray.nodes import Node, free_nodes
from fedkd.errors import EngineLost, UserError
from fedkd.scenario import Engine

GPU_KEY = "engine.gpus_per_actor"
SETTLE_SECONDS = 3.0
"""Seconds in which stopping actors may still reserve resources."""
POLL_SECONDS = 0.2


def gpu_share(engine: Engine, cluster: RayCluster, num_clients: int) -> float:
    """Return an actor's share of GPUs: by default equal, for as many actors as a node's CPUs allow."""
    if engine.gpus_per_actor is not None:
        return engine.gpus_per_actor
    shares = [(_cpu_shares(node, engine), int(node.gpus)) for node in cluster.nodes]
    shares = [(actors, gpus) for actors, gpus in shares if actors and gpus]
    if not shares or engine.device == "cpu":
        return 0.0
    wanted = min(num_clients, engine.actors or num_clients)
    return 1 / max(1, *(ceil(min(actors, wanted) / gpus) for actors, gpus in shares))


def count_actors(engine: Engine, cluster: RayCluster, num_clients: int) -> int:
    """Return how many actors fit an idle cluster, each on one node; `UserError`: too few or none."""
    gpus_per_actor = gpu_share(engine, cluster, num_clients)
    most_cpus = max((node.cpus for node in cluster.nodes), default=0.0)
    most_gpus = max((node.gpus for node in cluster.nodes), default=0.0)
    where = "the Ray cluster has" if len(cluster.nodes) < 2 else "the largest node of the Ray cluster has"
    if not any(_cpu_shares(node, engine) for node in cluster.nodes):
        raise UserError(
            f"asks for {engine.cpus_per_actor:g} CPUs an actor, but {where} {most_cpus:g}",
            key="engine.cpus_per_actor",
        )
    check_gpus(gpus_per_actor, most_gpus, where)
    fits = fitting(engine, cluster.nodes, gpus_per_actor)
    if fits == 0:
        raise UserError(
            f"no node of the Ray cluster has both {engine.cpus_per_actor:g} CPUs and {gpus_per_actor:g} GPUs",
            key=GPU_KEY,
        )
    if engine.actors is not None and engine.actors > fits:
        nodes = f" on {len(cluster.nodes)} nodes" if len(cluster.nodes) > 1 else ""
        raise UserError(
            f"asks for {engine.actors} actors, but the Ray cluster ({cluster.cpus:g} CPUs, {cluster.gpus:g}"
            f" GPUs{nodes}) fits {fits}; lower it or engine.cpus_per_actor",
            key="engine.actors",
        )
    return min(fits, num_clients, engine.actors or fits)


def room_for_actors(
    engine: Engine, cluster: RayCluster, number: int, tell: Callable[[str], None] = lambda line: None
) -> int:
    """Return how many actors to start, at most `number`: as many as the nodes' free resources fit.

    A run that owns the cluster takes all of it. On a shared cluster, the actors that fit now are enough, and
    `tell` receives a line. If none fit, or the scenario sets their number, the function waits for room, at
    most `Engine.start_timeout` (then `EngineLost`). Actors that exceed an idle cluster raise `UserError`.
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
                tell(f"the Ray cluster is in use: it has room for {fits} of {wanted} actors")
                return fits
            if waited >= engine.start_timeout:
                break
            if not waits:
                waits = True
                tell(f"waiting for room on the Ray cluster: {fits} of {wanted} actors fit now")
        cluster.watch.check()
        time.sleep(POLL_SECONDS)
    free_cpus, free_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    raise EngineLost(
        f"the Ray cluster had room for {fits} of {wanted} actors after {engine.start_timeout:g} s"
        f" (engine.start_timeout): {free_cpus:g} of its {cluster.cpus:g} CPUs and {free_gpus:g} of its"
        f" {cluster.gpus:g} GPUs are free"
    )


def fitting(engine: Engine, nodes: Iterable[Node], gpus_per_actor: float) -> int:
    """Return how many actors fit the nodes, each on one of them."""
    return sum(min(_cpu_shares(node, engine), _gpu_shares(node.gpus, gpus_per_actor)) for node in nodes)


def _cpu_shares(node: Node, engine: Engine) -> int:
    return int(node.cpus / engine.cpus_per_actor + 1e-9)


def _gpu_shares(gpus: float, share: float) -> int:
    """Return how many shares the GPUs have; a share below one GPU lies within a single GPU."""
    if share <= 0:
        return sys.maxsize
    return int(gpus / share) if share >= 1 else int(gpus) * int(1 / share + 1e-9)


def check_gpus(share: float, most: float, where: str) -> None:
    """Refuse a share of GPUs above the `most` of a node; `where` is such as ``"the Ray cluster has"``."""
    if share > 0 and most == 0:
        raise UserError(
            f"asks for {share:g} GPU an actor, but Ray sees no GPU here; set it to 0", key=GPU_KEY
        )
    if most < share:
        raise UserError(f"asks for {share:g} GPUs an actor, but {where} {most:g}", key=GPU_KEY)
    if share > 1 and share % 1:
        raise UserError(f"must be a whole number if it is above 1, got {share:g}", key=GPU_KEY)


def check_local_gpus(engine: Engine) -> None:
    """Refuse a GPU share that this machine cannot give, without starting Ray."""
    if engine.kind != "ray" or engine.address is not None or not engine.gpus_per_actor:
        return
    import torch

    check_gpus(engine.gpus_per_actor, torch.cuda.device_count(), "this machine has")
