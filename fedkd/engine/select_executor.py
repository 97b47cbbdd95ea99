"""Select the executor of ``training.executor = "auto"``, measured where clients will work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fedkd.clients.executor_choice import Choice, choose
from fedkd.data.load import Data
from fedkd.engine.clients import on_its_device
from fedkd.engine.ray_cluster import RayCluster
from fedkd.engine.ray_placement import gpu_share
from fedkd.errors import described
from fedkd.plan.plan import Plan, open_plan

WAIT_SECONDS = 0.5


def with_selected_executor(
    plan: Plan, data: Data, tell: Callable[[str], None], cluster: RayCluster | None = None
) -> Plan:
    """Return a plan whose executor is one of the two, measured if the scenario leaves it open.

    Args:
        tell: Told that it is measured, and what was found.
        cluster: Where clients will work; None: in this process.

    Raises:
        EngineLost: Ray ended meanwhile.
    """
    if plan.scenario.training.executor != "auto":
        return plan
    engine = plan.scenario.engine
    share = engine.gpus_per_actor if cluster is None else gpu_share(engine, cluster, len(plan.blocks))
    placed = on_its_device(plan, share)
    if cluster is None or cluster.alone:  # what this process sees, actors will
        choice = choose(placed, data, tell=tell)
    else:
        tell("finding out on the cluster whether clients train quicker one by one or together")
        choice = _choose_on_cluster(placed, data, cluster, share or 0.0)
    tell(f"executor {choice.told}")
    return plan.with_executor(choice.executor)


def _choose_on_cluster(plan: Plan, data: Data, cluster: RayCluster, gpus: float) -> Choice:
    """Choose in a process of a cluster that has what an actor will have."""
    import ray

    cpus = plan.scenario.engine.cpus_per_actor
    work = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_choose)
    with cluster.watch.guard():
        waiting = [work.remote(plan.scenario.model_dump_json(), ray.put(data))]
        while not ray.wait(waiting, timeout=WAIT_SECONDS)[0]:
            cluster.watch.check()
        cluster.watch.check()
        try:
            executor, told = ray.get(waiting[0])
        except Exception as error:  # actors will tell of what is wrong there
            return Choice("loop", f"loop: nothing could be measured on the cluster ({described(error)})")
    return Choice(executor, told)


def _choose(scenario_json: str, data: Any) -> tuple[str, str]:
    choice = choose(open_plan(scenario_json), data)
    return choice.executor, choice.told
