"""Start Ray for one run, or connect to a cluster."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from fedkd.engine.compat import (
    allowed_cpus,
    import_ray,
    minimal_ray,
    patient,
    private_ray,
    silence_raylet,
)
from fedkd.engine.ray.nodes import Node, alive_nodes
from fedkd.engine.ray.process_watch import RayWatch, watch_ray
from fedkd.engine.signals import kept_handlers, sheltered_from_hang_up
from fedkd.engine.supervisor import address_limit, descendant_pids, end_processes_of_ray, held_signals
from fedkd.errors import EngineLost, UserError, described
from fedkd.scenario import Engine

Started = TypeVar("Started")

# For Ray's processes. The first lets actors without a share of a GPU see all GPUs, without a warning.
_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
}
_JOINING = {"RAY_NUM_REDIS_GET_RETRIES": "1"}
"""Ray reads it on import. A missing token is then reported after half a minute, not ten."""

LOCAL_CONFIG = {"gcs_rpc_server_reconnect_timeout_s": 3600, "max_direct_call_object_size": 2**19}
"""For a Ray started here. Ray would end this process a minute after its GCS; `RayWatch` reports it first.
Replies of up to 512 KiB come with the call; the object store would cost a millisecond each."""

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class RayCluster:
    """A connection to Ray, `owned` if it was started here; without `seclusion` others may use it too."""

    nodes: tuple[Node, ...]
    owned: bool
    watch: RayWatch = field(default_factory=RayWatch, compare=False)
    seclusion: Callable[[], None] | None = field(default=None, compare=False)

    @property
    def cpus(self) -> float:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        return sum(node.gpus for node in self.nodes)

    @property
    def alone(self) -> bool:
        """True if Ray serves this run alone, on this machine."""
        return self.seclusion is not None

    def now(self) -> RayCluster:
        return replace(self, nodes=alive_nodes())

    def close(self) -> None:
        if self.owned:
            import ray

            ray.shutdown()
        if self.seclusion is not None:
            self.seclusion()


def connect_ray(engine: Engine) -> RayCluster:
    """Start a local Ray (twice, else `EngineLost`), or join the one at ``engine.address`` (`UserError`)."""
    for name, value in (_ENVIRONMENT | (_JOINING if engine.address is not None else {})).items():
        os.environ.setdefault(name, value)
    import_ray()
    import ray

    if ray.is_initialized():
        return RayCluster(alive_nodes(), False, watch_ray())
    silence_raylet()
    logging.getLogger("ray").setLevel(logging.ERROR)  # with its own configuration off, Ray does not
    seclusion = start_with_retry(_start) if engine.address is None else None
    if engine.address is not None:
        _join(engine.address)
    return RayCluster(alive_nodes(), True, watch_ray(), seclusion)


def _start() -> Callable[[], None]:
    import ray

    with minimal_ray(), private_ray() as seclusion, sheltered_from_hang_up(), held_signals(), kept_handlers():
        ray.init(
            address="local",
            num_cpus=allowed_cpus(),
            include_dashboard=False,
            _system_config=LOCAL_CONFIG,
            **_QUIET,
        )
    return seclusion


def start_with_retry(start: Callable[[], Started]) -> Started:
    """Start a Ray, and once more with longer limits for a busy machine; then `EngineLost`."""
    others = descendant_pids(os.getpid())
    for patience in (nullcontext, patient):
        try:
            with patience():
                return start()
        except Exception as error:
            failure = error
            end_processes_of_ray(others)
    logs = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "session_latest" / "logs"
    raise EngineLost(
        f"Ray failed to start twice: {described(failure)}{_likely_cause()}; its logs: {logs}"
    ) from failure


def _likely_cause() -> str:
    if (limit := address_limit()) is not None:
        return f"; the address space is limited to {limit}, which is the likely cause"
    load, cpus = os.getloadavg()[0], len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if load <= cpus:
        return ""
    return f"; the machine is busy (load {load:.0f}, {cpus} CPUs), which is the likely cause"


def _join(address: str) -> None:
    import ray

    _check_reachable(address)
    try:
        with sheltered_from_hang_up(), held_signals(), kept_handlers():
            ray.init(address=address, **_QUIET)
    except (OSError, ValueError, RuntimeError) as error:  # ConnectionError is an OSError
        raise UserError(
            f"no Ray cluster at '{address}': {described(error)}; if it requires a token, set RAY_AUTH_MODE"
            " and RAY_AUTH_TOKEN",
            key="engine.address",
        ) from error


def _check_reachable(address: str) -> None:
    """Refuse an unreachable ``host:port`` in seconds; Ray takes minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:  # "auto", and ray:// addresses, are Ray's to look up
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(f"no Ray cluster at '{address}': {error}", key="engine.address") from error
