"""Actors that are started before there is anything to do for them: they import what they need meanwhile."""

from __future__ import annotations

from typing import Any

from fedkd.engine.ray_pool import RayCluster, count_actors, gpu_share
from fedkd.errors import UserError
from fedkd.plan.plan import Plan

WORKLOAD = "fedkd.engine.clients"


def early_actors(plan: Plan, cluster: RayCluster) -> list[Any]:
    """Start the actors of a plan on a Ray of its own; none on a cluster of others, who may need the room."""
    from fedkd.engine.ray_grid import start_spares

    if cluster.seclusion is None or plan.scenario.training.executor == "auto":  # which may want fewer
        return []
    engine, number = plan.scenario.engine, len(plan.blocks)
    try:
        actors, share = count_actors(engine, cluster, number), gpu_share(engine, cluster, number)
    except UserError:  # which is told of when they are needed
        return []
    with cluster.watch.guard():
        return start_spares(actors, WORKLOAD, engine.cpus_per_actor, share)
