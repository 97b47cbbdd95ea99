"""Equal code on every node: plug-in folders are sent, package versions compared."""

import hashlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.engine.ray import node_probe
from fedkd.engine.ray.cluster import RayCluster
from fedkd.engine.ray.nodes import Node, is_dead, own_node
from fedkd.engine.ray.placement import fitting
from fedkd.errors import ActorsLost, EngineLost, UserError
from fedkd.plan import foreign_modules
from fedkd.plugins import module_path
from fedkd.scenario import Engine, Scenario

MOST_BYTES = 64 * 2**20
"""Limit of all files together."""


@dataclass(frozen=True)
class ShippedFolder:
    """Python files of a plug-in folder `path`, by relative path with ``/``."""

    path: str
    files: Mapping[str, bytes]


def shipped_plugin_files(scenario: Scenario) -> tuple[ShippedFolder, ...]:
    """Return the files of a resolved scenario's plug-in folders; `UserError`: too large, unreadable."""
    folders, size = [], 0
    for index, name in enumerate(scenario.plugin_path):
        folder, files = Path(name).resolve(), {}
        for path in sorted(_files(folder, sorted(_imported_from(folder)))):
            try:
                data = files[path.relative_to(folder).as_posix()] = path.read_bytes()
            except OSError as error:
                raise UserError(
                    f"{path} cannot be sent to the nodes: {error.strerror}", key=f"plugin_path.{index}"
                ) from error
            size += len(data)
            if size > MOST_BYTES:
                raise UserError(
                    f"the Python files of {folder} exceed {MOST_BYTES >> 20} MiB, the most that is sent to"
                    " nodes; move the plug-ins to a folder of their own",
                    key=f"plugin_path.{index}",
                )
        if files:
            folders.append(ShippedFolder(name, files))
    return tuple(folders)


def with_shipped_files(scenario: Scenario, folders: Sequence[ShippedFolder]) -> Scenario:
    """Return a scenario that imports plug-ins from equal files here, or from a temporary folder."""
    here = {folder.path: folder.path if _is_here(folder) else str(_written(folder)) for folder in folders}
    search = [here.get(path, path) for path in scenario.plugin_path]
    return scenario.model_copy(update={"plugin_path": search})


def _imported_from(folder: Path) -> Iterator[Path]:
    """Yield, relative to a folder, the files that modules were imported from."""
    for name, module in list(sys.modules.items()):
        relative = module_path(name)
        for file in (relative, relative.with_suffix("") / "__init__.py"):
            if getattr(module, "__file__", None) == str(folder / file):
                yield file


def _files(folder: Path, imported: Sequence[Path]) -> set[Path]:
    found: set[Path] = set()
    for file in imported:
        found |= set((folder / file.parts[0]).rglob("*.py") if len(file.parts) > 1 else folder.glob("*.py"))
    return {path for path in found if path.is_file()}


def _is_here(folder: ShippedFolder, place: Path | None = None) -> bool:
    place = place or Path(folder.path)
    try:
        return all((place / file).read_bytes() == data for file, data in folder.files.items())
    except OSError:
        return False


def _written(folder: ShippedFolder) -> Path:
    """Write the files into a folder that this user's processes share, and return it."""
    new, digest = Path(tempfile.mkdtemp(prefix="fedkd-plugins-")), hashlib.sha256()
    for file, data in sorted(folder.files.items()):
        path = new / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        digest.update(f"{file}\0".encode() + hashlib.sha256(data).digest())
    shared = new.with_name(f"fedkd-plugins-{os.getuid()}-{digest.hexdigest()[:16]}")
    with suppress(OSError):  # another process was first
        new.rename(shared)
        return shared
    if not _is_ours(shared) or not _is_here(folder, shared):
        return new
    shutil.rmtree(new, ignore_errors=True)
    return shared


def _is_ours(folder: Path) -> bool:
    with suppress(OSError):
        status = folder.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return False


DECIDING = ("torch", "numpy", "flwr", "scikit-learn")
"""Packages whose version decides the last bits of results, or the messages between processes."""


def other_nodes(engine: Engine, cluster: RayCluster, share: float) -> list[Node]:
    """Return the nodes, other than this one, with room for an actor."""
    here = None if cluster.alone else own_node()
    others = () if cluster.alone else cluster.nodes
    return [node for node in others if node.id != here and fitting(engine, [node], share)]


def check_nodes(
    scenario: Scenario, cluster: RayCluster, share: float, folders: Sequence[ShippedFolder] = ()
) -> None:
    """Compare the nodes for actors with this machine; each actor reserves `share` GPUs.

    Another package or module version is a `UserError`. A lost node is `ActorsLost`, a silent one
    `EngineLost`.
    """
    others = other_nodes(scenario.engine, cluster, share)
    if not others:
        return
    sent = {file for folder in folders for file in folder.files}
    modules = [m for m in foreign_modules(scenario) if module_path(m).as_posix() not in sent]
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
        told.append("has another fedkd: its files differ from those here")
    for package, version in own["packages"].items():
        if (there := other["packages"][package]) != version:
            has = f"{package} {there}" if there else f"no {package}"
            told.append(f"has {has}, and here it is {version or 'not installed'}: results would differ")
    for module, digest in own["modules"].items():
        there = other["modules"][module]
        if digest is None or there == digest:  # a module without a file is the interpreter's own
            continue
        if there is None:
            told.append(f"lacks the module '{module}', which is installed here; install it there")
        else:
            told.append(f"has another version of the module '{module}'; install the one used here")
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
