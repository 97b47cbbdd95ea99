"""Checks that every node of a cluster sees the same data, plug-ins and run folders.

A cell runs on one node: it reads data and plug-ins there, and writes its run folder there.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.data import Data, FederatedData, load_data
from fedkd.engine import RayCluster, check_nodes, other_nodes, shipped_plugin_files
from fedkd.errors import EngineLost, FedkdError, UserError
from fedkd.plan import open_plan
from fedkd.scenario import Engine, scenario_from_json

POLL_SECONDS = 0.2
MARK = ".nodes.tmp"  # a file beside the run folders while nodes look for it


@dataclass(frozen=True)
class NodeReport:
    """The SHA-256 of a cell's data on a node, or a problem there, worded as the end of a sentence."""

    trouble: str = ""
    data: str = ""


def inspect_node(scenario_json: str, folder: str | None = None) -> NodeReport:
    """Return a cell's data or problem on this machine, which must see `MARK` among the run folders."""
    if folder is not None and not (Path(folder) / MARK).is_file():
        return NodeReport(f"does not see {folder}; put the bench on a disk that all nodes share")
    try:
        data = load_data(open_plan(scenario_json).scenario)
    except FedkdError as error:
        return NodeReport(f"cannot run a cell: {error}")
    return NodeReport(data=data_digest(data))


def data_digest(data: Data) -> str:
    """Return the SHA-256 of all samples and labels."""
    found = hashlib.sha256()
    for part in [data] if isinstance(data, FederatedData) else [task.data for task in data]:
        for values in (part.x, part.y, part.transfer_x, part.test_x, part.test_y):
            found.update(f"{values.dtype} {values.shape}".encode())
            found.update(np.ascontiguousarray(values).data)
    return found.hexdigest()


def check_all_nodes(
    jobs: Sequence[tuple[str, str]], engine: Engine, cluster: RayCluster, share: float
) -> None:
    """Compare all nodes that cells may run on with this machine, for each data set among the cells."""
    nodes = other_nodes(engine, cluster, share)
    if not nodes:
        return
    tried: dict[str, str] = {}
    for scenario_json, _ in jobs:
        scenario = scenario_from_json(scenario_json)
        tried.setdefault(scenario.data.model_dump_json(), scenario_json)
    scenario = scenario_from_json(jobs[0][0])
    check_nodes(scenario, cluster, share, shipped_plugin_files(scenario))
    folder = Path(jobs[0][1]).parent
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / MARK
    try:
        mark.touch()
        own = [inspect_node(scenario_json).data for scenario_json in tried.values()]
        asked = [(node, job, data) for node in nodes for job, data in zip(tried.values(), own, strict=True)]
        found = _ask([(node.id, job) for node, job, _ in asked], str(folder), engine, cluster)
    finally:
        mark.unlink(missing_ok=True)
    for (node, _, data), place in zip(asked, found, strict=True):
        if place.trouble:
            raise UserError(f"node {node.name} {place.trouble}", key="engine.address")
        if place.data != data:
            raise UserError(f"node {node.name} has other data than this machine", key="engine.address")


def _ask(
    places: Sequence[tuple[str, str]], folder: str, engine: Engine, cluster: RayCluster
) -> list[NodeReport]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look: Any = ray.remote(inspect_node)
    pinned = ((NodeAffinitySchedulingStrategy(node_id, soft=False), job) for node_id, job in places)
    waiting = [
        look.options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote(job, folder)
        for place, job in pinned
    ]
    late, lost = f"of {len(waiting)} checks of nodes did not end", "a node was lost before the first cell"
    return await_all(waiting, engine, cluster, lambda left: f"{left} {late}", lost)


def await_all(
    references: Sequence[Any], engine: Engine, cluster: RayCluster, late: Callable[[int], str], lost: str
) -> list[Any]:
    """Return the results of Ray tasks; `late` and `lost` word missing nodes and failures.

    Each has `engine.start_timeout` seconds since the last one came.
    """
    import ray
    from ray.exceptions import RayError

    left, patience = list(references), engine.start_timeout
    deadline = time.monotonic() + patience
    while left:
        done, left = ray.wait(left, num_returns=len(left), timeout=POLL_SECONDS)
        cluster.watch.check()
        if done:
            deadline = time.monotonic() + patience
        if left and time.monotonic() > deadline:
            raise EngineLost(f"{late(len(left))} within {patience:g} s (engine.start_timeout)")
    try:
        return ray.get(references)
    except RayError as error:
        cluster.watch.check_after_failure()
        raise EngineLost(f"{lost}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
