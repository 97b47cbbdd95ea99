"""Starting Ray, or joining a cluster, and finding out how many actors fit."""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

from fedkd.engine.gpus import check_gpus
from fedkd.engine.ray_lean import lean
from fedkd.engine.ray_local import Seclusion, allowed_cpus, secluded
from fedkd.engine.ray_nodes import Node, alive_nodes
from fedkd.engine.ray_patience import twice
from fedkd.engine.ray_watch import RayWatch, watch_ray
from fedkd.errors import UserError, described
from fedkd.scenario.schema import Engine
from fedkd.signals import kept_handlers, sheltered_from_hang_up
from fedkd.supervisor import held_signals

# Read by Ray's processes when they start. The first: Ray leaves the visible GPUs as they are where an actor
# holds no share of one, which it otherwise announces as its future default with a warning.
_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
}

_JOINING = {"RAY_NUM_REDIS_GET_RETRIES": "1"}
"""Read by Ray when it is imported: a cluster that answers nobody without its token is waited for once, half a
minute, instead of twenty times."""

LOCAL_CONFIG = {"gcs_rpc_server_reconnect_timeout_s": 3600, "max_direct_call_object_size": 2**19}
"""Of a Ray that is started here. Without its GCS, Ray would end this process after a minute, with status 1;
so `RayWatch` tells of it first, however long a round takes. Replies of up to half a megabyte come with the
call itself, where Ray would have all above 100 kB go through its object store, at a millisecond each."""

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}

CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class RayCluster:
    """A connection to Ray.

    Attributes:
        nodes: The cluster's machines: an actor lies on one of them.
        owned: Whether this process started it and has to stop it.
        watch: Says whether it is still there.
        seclusion: What keeps others away from one that was started here.
    """

    nodes: tuple[Node, ...]
    owned: bool
    watch: RayWatch = field(default_factory=RayWatch, compare=False)
    seclusion: Seclusion | None = field(default=None, compare=False)

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    @property
    def alone(self) -> bool:
        """Whether nobody else works there, and on this machine only."""
        return self.seclusion is not None

    def now(self) -> RayCluster:
        """Return the cluster with the nodes that it has by now."""
        return replace(self, nodes=alive_nodes())

    def close(self) -> None:
        """Stop Ray if it was started here."""
        if self.owned:
            import ray

            ray.shutdown()
        if self.seclusion is not None:
            self.seclusion.end()


def connect(engine: Engine) -> RayCluster:
    """Start a local Ray, or join the one that is running or named by ``engine.address``.

    Raises:
        UserError: There is no cluster at the address.
        EngineLost: A local one does not start, twice.
    """
    for name, value in (_ENVIRONMENT | (_JOINING if engine.address is not None else {})).items():
        os.environ.setdefault(name, value)
    _import_ray()
    import ray

    if ray.is_initialized():
        return RayCluster(alive_nodes(), False, watch_ray())
    _silence_raylet()
    logging.getLogger("ray").setLevel(logging.ERROR)  # with its own configuration off, Ray does not
    seclusion = twice(_start) if engine.address is None else None
    if engine.address is not None:
        _join(engine.address)
    return RayCluster(alive_nodes(), True, watch_ray(), seclusion)


def _start() -> Seclusion:
    import ray

    with lean(), secluded() as seclusion, sheltered_from_hang_up(), held_signals(), kept_handlers():
        ray.init(
            address="local",
            num_cpus=allowed_cpus(),
            include_dashboard=False,
            _system_config=LOCAL_CONFIG,
            **_QUIET,
        )
    return seclusion


def _join(address: str) -> None:
    import ray

    _check_reachable(address)
    try:
        with sheltered_from_hang_up(), held_signals(), kept_handlers():
            ray.init(address=address, **_QUIET)
    except (OSError, ValueError, RuntimeError) as error:  # ConnectionError is an OSError
        raise UserError(
            f"no Ray cluster at '{address}': {described(error)}; one that asks for a token (RAY_AUTH_MODE,"
            " RAY_AUTH_TOKEN) answers nobody without",
            key="engine.address",
        ) from error


def _import_ray() -> None:
    """Load Ray so that it takes no part in deciding when this process ends.

    Where the parent process is process 1, as after a log-out or in a container, Ray (2.55) takes that for a
    sign that the raylet is dead, and ends this process with status 1 at the first call that fails, while it
    is being shut down, say. It does not where it is told which process the raylet is when it is loaded.
    """
    if "ray" in sys.modules or "RAY_RAYLET_PID" in os.environ:
        return
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())
    try:
        import ray  # noqa: F401
    finally:
        del os.environ["RAY_RAYLET_PID"]


def _check_reachable(address: str) -> None:
    """Find out in seconds what Ray takes minutes to say: that nobody answers at ``host:port``.

    Raises:
        UserError: Nobody does.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:  # "auto", and ray:// addresses, are Ray's to look up
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(f"no Ray cluster at '{address}': {error}", key="engine.address") from error


def _silence_raylet() -> None:
    """Keep Ray's lines about a worker that died off standard output: fedkd names the client and the round.

    ``log_to_driver=False`` only silences what workers print, and Ray (2.55) has no setting for the rest.
    """
    from ray._private import worker

    printed = getattr(worker, "print_to_stdstream", None)
    if printed is None or hasattr(printed, "__wrapped__"):
        return

    @functools.wraps(printed)
    def without_raylet(data: dict[str, Any], *args: Any, **options: Any) -> None:
        if data.get("pid") != "raylet":
            printed(data, *args, **options)

    worker.print_to_stdstream = without_raylet


def gpu_share(engine: Engine, cluster: RayCluster, num_clients: int) -> float:
    """Return the GPUs an actor reserves: where the scenario leaves it open, its share of all there are.

    It is the same for all, and small enough for as many actors on a node as its CPUs are enough for.
    """
    if engine.gpus_per_actor is not None:
        return engine.gpus_per_actor
    shares = [(_cpu_shares(node, engine), int(node.gpus)) for node in cluster.nodes]
    shares = [(actors, gpus) for actors, gpus in shares if actors and gpus]
    if not shares or engine.device == "cpu":
        return 0.0
    wanted = min(num_clients, engine.actors or num_clients)
    return 1 / max(1, *(ceil(min(actors, wanted) / gpus) for actors, gpus in shares))


def count_actors(engine: Engine, cluster: RayCluster, num_clients: int) -> int:
    """Return how many actors to start: as many as fit, at most ``engine.actors`` and one per client.

    An actor lies on one node, so the CPUs that are left over on several are of no use to another one.

    Raises:
        UserError: Not even one actor fits a node, or fewer than asked for.
    """
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
            key="engine.gpus_per_actor",
        )
    if engine.actors is not None and engine.actors > fits:
        nodes = f" on {len(cluster.nodes)} nodes" if len(cluster.nodes) > 1 else ""
        raise UserError(
            f"asks for {engine.actors} actors, but the Ray cluster ({cluster.cpus:g} CPUs, {cluster.gpus:g}"
            f" GPUs{nodes}) fits {fits}; lower it or engine.cpus_per_actor",
            key="engine.actors",
        )
    return min(fits, num_clients, engine.actors or fits)


def fitting(engine: Engine, nodes: Iterable[Node], gpus_per_actor: float) -> int:
    """Return how many actors fit the nodes, each of them on one."""
    return sum(
        min(_cpu_shares(node, engine), _gpu_shares(node.gpus, gpus_per_actor))
        if gpus_per_actor > 0
        else _cpu_shares(node, engine)
        for node in nodes
    )


def _cpu_shares(node: Node, engine: Engine) -> int:
    return int(node.cpus / engine.cpus_per_actor + 1e-9)


def _gpu_shares(gpus: float, share: float) -> int:
    """Return how many shares the GPUs have; a share of less than one GPU lies within a single GPU."""
    if share >= 1:
        return int(gpus / share)
    return int(gpus) * int(1 / share + 1e-9)
