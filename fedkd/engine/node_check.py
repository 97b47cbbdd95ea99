"""Check, before the first round, that every node of a cluster has the same packages and plug-ins."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fedkd.engine import node_probe
from fedkd.engine.plugin_shipping import ShippedFolder
from fedkd.engine.ray_cluster import RayCluster
from fedkd.engine.ray_nodes import Node, is_dead, own_node
from fedkd.engine.ray_placement import fitting
from fedkd.errors import ActorsLost, EngineLost, UserError
from fedkd.plan.no_plugins import foreign_modules
from fedkd.plugins import module_file
from fedkd.scenario.schema import Engine, Scenario

DECIDING = ("torch", "numpy", "flwr", "scikit-learn")
"""Packages whose version decides the last bits of results, or the messages between processes."""


def other_nodes(engine: Engine, cluster: RayCluster, share: float) -> list[Node]:
    """Return the nodes, other than this one, with room for an actor."""
    if cluster.alone:
        return []
    here = own_node()
    return [node for node in cluster.nodes if node.id != here and fitting(engine, [node], share)]


def check_nodes(
    scenario: Scenario, cluster: RayCluster, share: float, folders: Sequence[ShippedFolder] = ()
) -> None:
    """Compare the nodes for actors with this machine.

    Args:
        scenario: Resolved.
        share: GPUs that an actor reserves.
        folders: Plug-ins that travel with the actors.

    Raises:
        UserError: A node lacks a package or module, or has another version.
        ActorsLost: A node was lost meanwhile.
        EngineLost: A node does not answer.
    """
    others = other_nodes(scenario.engine, cluster, share)
    if not others:
        return
    sent = {file for folder in folders for file in folder.files}
    modules = [m for m in foreign_modules(scenario) if module_file(m).as_posix() not in sent]
    own = node_probe.look_around(list(DECIDING), modules)
    found = _ask(others, modules, cluster, scenario.engine.start_timeout)
    for node in others:
        told = differences(own, found[node.id])
        if told:
            raise UserError(f"node {node.name} {told[0]}", key="engine.address")


def differences(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the differences of a node as ends of sentences (see `node_probe.look_around`)."""
    told = []
    if other["fedkd"] is None:
        told.append("has no fedkd; install it there")
    elif other["fedkd"] != own["fedkd"]:
        told.append("has another fedkd than the one that runs here: its files differ")
    for package, version in own["packages"].items():
        if other["packages"][package] != version:
            named = other["packages"][package]
            has = f"{package} {named}" if named else f"no {package}"
            told.append(f"has {has}, and here it is {version or 'not installed'}: results would differ")
    for module, digest in own["modules"].items():
        if digest is None or other["modules"][module] == digest:  # one of no file is the interpreter's own
            continue
        if other["modules"][module] is None:
            told.append(f"does not find the module '{module}', which is installed here; install it there")
        else:
            told.append(f"has another module '{module}' than the one that is installed here")
    return told


def _ask(
    nodes: Sequence[Node], modules: Sequence[str], cluster: RayCluster, patience: float
) -> dict[str, Mapping[str, Any]]:
    import ray
    from ray import cloudpickle
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cloudpickle.register_pickle_by_value(node_probe)
    try:
        probe: Any = ray.remote(node_probe.look_around)
        waiting = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": there}
            waiting[probe.options(**options).remote(list(DECIDING), list(modules))] = node
    finally:
        cloudpickle.unregister_pickle_by_value(node_probe)
    found: dict[str, Mapping[str, Any]] = {}
    deadline = time.monotonic() + patience
    while waiting:
        done, _ = ray.wait(list(waiting), timeout=0.2)
        cluster.watch.check()
        for reference in done:
            node = waiting.pop(reference)
            try:
                found[node.id] = ray.get(reference)
            except RayTaskError as error:
                raise UserError(
                    f"node {node.name} cannot run fedkd: {error.cause}", key="engine.address"
                ) from error
            except RayError as error:
                raise ActorsLost(f"node {node.name} was lost before an actor was started on it") from error
        for node in waiting.values():
            if is_dead(node):
                raise ActorsLost(f"node {node.name} was lost before an actor was started on it")
        if waiting and time.monotonic() > deadline:
            names = ", ".join(node.name for node in waiting.values())
            raise EngineLost(f"node {names} gave no answer within {patience:g} s (engine.start_timeout)")
    return found
