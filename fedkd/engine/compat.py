"""Private names of Ray that this package uses, tested with Ray 2.55."""

from __future__ import annotations

import functools
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedkd.engine.supervisor import descendant_pids

LOOPBACK_ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""If 0, Ray's node takes the loopback address, on Linux too."""
PATIENT_SECONDS = 180
"""Limit of each step of a patient start, instead of 5 to 60 seconds."""
_PATIENCE = {
    "RAY_agent_register_timeout_ms": str(1000 * PATIENT_SECONDS),
    "RAY_gcs_rpc_server_connect_timeout_s": str(PATIENT_SECONDS),
    "RAY_gcs_server_request_timeout_seconds": str(PATIENT_SECONDS),
    "RAY_py_gcs_connect_timeout_s": str(PATIENT_SECONDS),
    "RAY_worker_register_timeout_seconds": str(PATIENT_SECONDS),
}
"""Environment variables of Ray's processes."""


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Give environment variables other values in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def import_ray() -> None:
    """Load Ray so that it never ends this process.

    If process 1 is the parent, Ray assumes a dead raylet at the first failing call, unless the
    raylet's process id is set.
    """
    if "ray" in sys.modules or "RAY_RAYLET_PID" in os.environ:
        return
    with environment({"RAY_RAYLET_PID": str(os.getpid())}):
        import ray  # noqa: F401


@contextmanager
def minimal_ray() -> Iterator[None]:
    """Start Ray in the block without its monitor, log reader and dashboard: 1.5 CPU seconds less."""
    from ray._private import node, parameter

    spared: Any = {"no_monitor": True, "include_log_monitor": False}
    params = functools.partial(parameter.RayParams, **spared)
    with replaced(parameter, "RayParams", params), replaced(node.Node, "start_api_server", _start_no_server):
        yield


def _start_no_server(self: Any, *args: Any, **options: Any) -> None:
    self._webui_url = ""


@contextmanager
def private_ray() -> Iterator[Callable[[], None]]:
    """Keep the Ray started in the block to this process; yield a function to call after its shutdown.

    By default Ray listens on all addresses and runs any code it receives. Here it listens on the loopback
    address alone and requires a token, which other child processes never see.
    """
    from ray import _raylet as library
    from ray._private import ray_constants

    raylet: Any = library
    had_token = raylet.get_authentication_mode() == raylet.AuthenticationMode.TOKEN
    end = functools.partial(_set_token_mode, "token" if had_token else "disabled")
    _set_token_mode("token")
    variables = {LOOPBACK_ALONE: "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # ENABLE_RAY_CLUSTER was read from the environment when Ray was loaded.
    with replaced(ray_constants, "ENABLE_RAY_CLUSTER", False), environment(variables):
        try:
            yield end
        except BaseException:
            end()
            raise


def _set_token_mode(mode: str) -> None:
    from ray import _raylet as library

    raylet: Any = library
    raylet.Config.initialize(json.dumps({"AUTH_MODE": mode}))
    raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def patient() -> Iterator[None]:
    """Let a Ray started in the block wait longer for its processes."""
    from ray._private import services

    # Ray waits 30 seconds for its node to register and has no setting for it.
    get_node = functools.partial(_wait_for_node, services.get_node)
    with environment(_PATIENCE), replaced(services, "get_node", get_node):
        yield


def _wait_for_node(get_node: Any, gcs_address: str, node_id: str) -> Any:
    deadline = time.monotonic() + PATIENT_SECONDS
    while True:
        try:
            return get_node(gcs_address, node_id)
        except RuntimeError:
            if time.monotonic() >= deadline or not _has_raylet():
                raise
            time.sleep(0.5)


def _has_raylet() -> bool:
    if not Path("/proc/self/cmdline").exists():
        return True
    for pid in descendant_pids(os.getpid()):
        with suppress(OSError):
            if b"/raylet/raylet" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
    return False


def silence_raylet() -> None:
    """Keep Ray's lines about dead workers off standard output; ``log_to_driver=False`` does not."""
    from ray._private import worker

    printed = worker.print_to_stdstream
    if hasattr(printed, "__wrapped__"):
        return

    @functools.wraps(printed)
    def without_raylet(data: dict[str, Any], *args: Any, **options: Any) -> None:
        if data.get("pid") != "raylet":
            printed(data, *args, **options)

    worker.print_to_stdstream = without_raylet


def allowed_cpus() -> int | None:
    """Return this process's CPUs if Ray would count more: it ignores batch systems and ``taskset``."""
    from ray._private.utils import get_num_cpus

    if not hasattr(os, "sched_getaffinity"):
        return None
    allowed = len(os.sched_getaffinity(0))
    return allowed if allowed < get_num_cpus(override_docker_cpu_warning=True) else None


def own_ray_node() -> Any | None:
    """Return this process's node object; None through Ray's client server (``ray://``)."""
    from ray._private import worker

    return getattr(worker, "_global_node", None)


def free_resources() -> Mapping[str, Mapping[str, float]] | None:
    """Return the free resources of each node by id; None through Ray's client server."""
    from ray._private import state, worker

    return state.available_resources_per_node() if worker.global_worker.connected else None


def node_of_actor(actor: Any) -> str | None:
    """Return the node id of an actor, dead or alive; None where Ray does not know it."""
    from ray._private import state

    with suppress(Exception):  # Ray's public interface is for the actor alone
        return state.actors(actor._actor_id.hex())["Address"]["NodeID"] or None
    return None
