"""A run's clients once more, on what is left of a cluster that has lost some of its actors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fedkd.data.load import Data
from fedkd.engine.clients import ray_grid
from fedkd.engine.ray_pool import RayCluster, count_actors, gpu_share
from fedkd.errors import EngineLost, UserError
from fedkd.plan.plan import Plan

POLL_SECONDS = 0.5


def ray_grid_again(
    plan: Plan, data: Data, cluster: RayCluster, folder: Path | None, tell: Callable[[str], None]
):
    """Return a grid as `ray_grid` does, on the nodes that there are by now.

    Where they are not enough for one actor, another node is waited for, as a cluster that is looked after
    brings one up in place of a lost one. Clients that were on a GPU are on one again: on the CPU the last
    bits of their results would be others.

    Args:
        plan: What to simulate.
        data: The federation's data.
        cluster: The cluster as it was in the beginning.
        folder: As of `ray_grid`.
        tell: Told what is waited for, and where it goes on.

    Raises:
        ActorsLost: A node, or an actor while it started, was lost meanwhile.
        EngineLost: What is left is not enough, after `Engine.start_timeout`.
    """
    number = len(plan.blocks)
    on_gpus = gpu_share(plan.scenario.engine, cluster, number) > 0
    plan = _with_any_number_of_actors(plan)  # fewer than were asked for are better than none
    engine = plan.scenario.engine
    began, waits = time.monotonic(), False
    while True:
        cluster.watch.check()
        left = cluster.now()
        lacking = _lacking(plan, left, number, on_gpus)
        if lacking is None:
            break
        if time.monotonic() - began >= engine.start_timeout:
            raise EngineLost(
                f"what is left of the Ray cluster is not enough: {lacking}, and no other node came within"
                f" {engine.start_timeout:g} s (engine.start_timeout)"
            )
        if not waits:
            waits = True
            tell(f"waiting for another node: {lacking}")
        time.sleep(POLL_SECONDS)
    try:
        return ray_grid(plan, data, left, folder, tell=tell)
    except UserError as error:
        raise EngineLost(f"the run cannot go on with what is left of the Ray cluster: {error}") from error


def _with_any_number_of_actors(plan: Plan) -> Plan:
    scenario = plan.scenario
    engine = scenario.engine.model_copy(update={"actors": None})
    return replace(plan, scenario=scenario.model_copy(update={"engine": engine}))


def _lacking(plan: Plan, cluster: RayCluster, number: int, on_gpus: bool) -> str | None:
    """Return why not even one actor of the run fits a cluster; None: one does."""
    try:
        count_actors(plan.scenario.engine, cluster, number)
    except UserError as error:
        return str(error)
    if on_gpus and gpu_share(plan.scenario.engine, cluster, number) == 0:
        return "its clients were on GPUs, and no node has one"
    return None
