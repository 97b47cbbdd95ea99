"""Starting Ray, or joining a cluster, and finding out how many actors fit."""

from __future__ import annotations

import functools
import logging
import os
import socket
from dataclasses import dataclass
from math import ceil
from typing import Any

from fedkd.errors import UserError, described
from fedkd.scenario.schema import Engine
from fedkd.signals import sheltered_from_hang_up

# Read by Ray's processes when they start. The first: Ray leaves the visible GPUs as they are where an actor
# holds no share of one, which it otherwise announces as its future default with a warning.
_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
}


CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class RayCluster:
    """A connection to Ray.

    Attributes:
        cpus: CPUs of the cluster.
        gpus: GPUs of the cluster.
        owned: Whether this process started it and has to stop it.
    """

    cpus: float
    gpus: float
    owned: bool

    def close(self) -> None:
        """Stop Ray if it was started here."""
        if self.owned:
            import ray

            ray.shutdown()


def connect(engine: Engine) -> RayCluster:
    """Start a local Ray, or join the one that is running or named by ``engine.address``.

    Raises:
        UserError: There is no cluster at the address.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    owned = not ray.is_initialized()
    if owned:
        _check_reachable(engine.address)
        _silence_raylet()
        logging.getLogger("ray").setLevel(logging.ERROR)  # with its own configuration off, Ray does not
        try:
            with sheltered_from_hang_up():
                ray.init(
                    address=engine.address or "local",
                    include_dashboard=False if engine.address is None else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=False,
                )
        except (OSError, ValueError, RuntimeError) as error:  # ConnectionError is an OSError
            if engine.address is None:
                raise UserError(f"Ray cannot be started: {described(error)}", key="engine.kind") from error
            raise UserError(
                f"no Ray cluster at '{engine.address}': {described(error)}", key="engine.address"
            ) from error
    resources = ray.cluster_resources()
    return RayCluster(resources.get("CPU", 0.0), resources.get("GPU", 0.0), owned)


def _check_reachable(address: str | None) -> None:
    """Find out in seconds what Ray takes minutes to say: that nobody answers at ``host:port``.

    Raises:
        UserError: Nobody does.
    """
    host, _, port = (address or "").rpartition(":")
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
    """Return the GPUs an actor reserves: where the scenario leaves it open, its share of all there are."""
    if engine.gpus_per_actor is not None:
        return engine.gpus_per_actor
    if cluster.gpus < 1 or engine.device == "cpu":
        return 0.0
    wanted = min(int(cluster.cpus / engine.cpus_per_actor + 1e-9), num_clients, engine.actors or num_clients)
    return 1 / max(1, ceil(wanted / int(cluster.gpus)))


def count_actors(engine: Engine, cluster: RayCluster, num_clients: int) -> int:
    """Return how many actors to start: as many as fit, at most ``engine.actors`` and one per client.

    Raises:
        UserError: Not even one actor fits the cluster, or fewer than asked for.
    """
    gpus_per_actor = gpu_share(engine, cluster, num_clients)
    fits = int(cluster.cpus / engine.cpus_per_actor + 1e-9)
    if fits == 0:
        raise UserError(
            f"asks for {engine.cpus_per_actor:g} CPUs an actor, but the Ray cluster has {cluster.cpus:g}",
            key="engine.cpus_per_actor",
        )
    if gpus_per_actor > 0:
        if cluster.gpus == 0:
            raise UserError(
                f"asks for {gpus_per_actor:g} GPU an actor, but Ray sees no GPU here; set it to 0",
                key="engine.gpus_per_actor",
            )
        if cluster.gpus < gpus_per_actor:
            raise UserError(
                f"asks for {gpus_per_actor:g} GPUs an actor, but the Ray cluster has {cluster.gpus:g}",
                key="engine.gpus_per_actor",
            )
        if gpus_per_actor > 1 and gpus_per_actor % 1:
            raise UserError(
                f"must be a whole number above 1, got {gpus_per_actor:g}", key="engine.gpus_per_actor"
            )
        fits = min(fits, _gpu_shares(cluster.gpus, gpus_per_actor))
    if engine.actors is not None and engine.actors > fits:
        raise UserError(
            f"asks for {engine.actors} actors, but the Ray cluster ({cluster.cpus:g} CPUs, {cluster.gpus:g}"
            f" GPUs) fits {fits}; lower it or engine.cpus_per_actor",
            key="engine.actors",
        )
    return min(fits, num_clients, engine.actors or fits)


def _gpu_shares(gpus: float, share: float) -> int:
    """Return how many shares the GPUs have; a share of less than one GPU lies within a single GPU."""
    if share >= 1:
        return int(gpus / share)
    return int(gpus) * int(1 / share + 1e-9)
