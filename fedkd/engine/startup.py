"""An engine started for one run, with its data, and restarted when actors are lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedkd.errors import ActorsLost, EngineLost, UserError
from fedkd.plan import Plan
from fedkd.scenario import Scenario

if TYPE_CHECKING:
    from fedkd.data import Data
    from fedkd.engine.grid import EngineGrid
    from fedkd.engine.ray.cluster import RayCluster

POLL_SECONDS = 0.5
WORKLOAD = "fedkd.engine.clients"
"""The module that idle actors import."""

Tell = Callable[[str], None]


class StartedEngine:
    """A started engine, with data and executor.

    `make` returns a fresh grid, `remake` one after losses.
    """

    def __init__(
        self, plan: Plan, data: Data, make: Callable[[], EngineGrid], remake: Callable[[], EngineGrid] | None
    ) -> None:
        self.plan, self.data = plan, data
        self._remake = remake or make
        self.grid = make()

    def renew(self) -> None:
        """Take another grid; `ActorsLost`: another loss; `EngineLost`: no grid starts."""
        self.grid.close()
        self.grid = self._remake()

    def close(self) -> None:
        self.grid.close()


@contextmanager
def started_engine(plan: Plan, folder: Path, tell: Tell) -> Iterator[StartedEngine]:
    """Load the data, start the engine, and stop it at the end; `tell` receives progress lines.

    Missing data or an unfit cluster raises `UserError`; Ray or actors that do not start raise `EngineLost`.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    with ExitStack() as stack:
        if plan.scenario.engine.kind == "inline":
            data = _load(plan.scenario, tell)
            from fedkd.engine.clients import inline_grid, measured_plan

            plan = measured_plan(plan, data, tell)
            engine = StartedEngine(plan, data, partial(inline_grid, plan, data, folder), None)
        else:
            from fedkd.engine.ray.cluster import connect_ray

            tell("starting Ray and loading the data")
            # Ray and imports, in actors and here, take seconds each, so all start at once.
            with ThreadPoolExecutor(max_workers=1) as background:
                imported = background.submit(_import_all)
                loading: Future[Data] = background.submit(_load, plan.scenario, tell)
                cluster = connect_ray(plan.scenario.engine)
                stack.callback(cluster.close)
                imported.result()  # two threads must not import the same packages at once
                spares = _start_early(plan, cluster)
                data = loading.result()
            from fedkd.engine.clients import measured_plan, ray_grid

            plan = measured_plan(plan, data, tell, cluster)
            engine = StartedEngine(
                plan,
                data,
                partial(ray_grid, plan, data, cluster, folder, spares, tell=tell),
                partial(_ray_grid_again, plan, data, cluster, folder, tell),
            )
        stack.callback(engine.close)
        yield engine


def _import_all() -> None:
    import fedkd.engine.clients  # noqa: F401
    from fedkd.federation import server_app  # noqa: F401


def _load(scenario: Scenario, tell: Tell) -> Data:
    from fedkd.data import load_data

    return load_data(scenario, progress=tell)


def _start_early(plan: Plan, cluster: RayCluster) -> list[Any]:
    """Start actors of this run's Ray early, so that they import packages meanwhile."""
    from fedkd.engine.ray.grid import start_spares
    from fedkd.engine.ray.placement import count_actors, gpu_share

    if not cluster.alone or plan.scenario.training.executor == "auto":  # it may need fewer
        return []
    engine, number = plan.scenario.engine, len(plan.blocks)
    try:
        actors, share = count_actors(engine, cluster, number), gpu_share(engine, cluster, number)
    except UserError:  # reported when they are needed
        return []
    with cluster.watch.guard():
        return start_spares(actors, WORKLOAD, engine.cpus_per_actor, share)


def _ray_grid_again(
    plan: Plan, data: Data, cluster: RayCluster, folder: Path | None, tell: Tell
) -> EngineGrid:
    """Return a grid on the rest of a cluster that has lost actors, once one actor fits.

    Clients that were on a GPU need one again: the CPU gives other last bits. Another loss raises
    `ActorsLost`. No room after `Engine.start_timeout` raises `EngineLost`.
    """
    from fedkd.engine.clients import ray_grid
    from fedkd.engine.ray.placement import gpu_share

    number, scenario = len(plan.blocks), plan.scenario
    on_gpus = gpu_share(scenario.engine, cluster, number) > 0
    # Fewer actors than requested are better than none.
    engine = scenario.engine.model_copy(update={"actors": None})
    plan = replace(plan, scenario=scenario.model_copy(update={"engine": engine}))
    began, waits = time.monotonic(), False
    cluster.watch.check()
    left = cluster.now()
    while (lacking := _lacking(plan, left, number, on_gpus)) is not None:
        if time.monotonic() - began >= engine.start_timeout:
            raise EngineLost(
                f"the rest of the Ray cluster is too small: {lacking}, and no other node joined within"
                f" {engine.start_timeout:g} s (engine.start_timeout)"
            )
        if not waits:
            waits = True
            tell(f"waiting for another node: {lacking}")
        time.sleep(POLL_SECONDS)
        cluster.watch.check()
        left = cluster.now()
    try:
        return ray_grid(plan, data, left, folder, tell=tell)
    except UserError as error:
        raise EngineLost(f"the run cannot continue on the rest of the Ray cluster: {error}") from error


def _lacking(plan: Plan, cluster: RayCluster, number: int, on_gpus: bool) -> str | None:
    from fedkd.engine.ray.placement import count_actors, gpu_share

    try:
        count_actors(plan.scenario.engine, cluster, number)
    except UserError as error:
        return str(error)
    if on_gpus and gpu_share(plan.scenario.engine, cluster, number) == 0:
        return "its clients were on GPUs, and no node has one"
    return None


class RestartPolicy:
    """Counts losses since the last checkpoint, and decides.

    A run may restart as long as it makes progress in between. It ends after `limit` losses from one
    checkpoint, or when a client has lost its process twice in one round. A `tolerant` run skips clients that
    die (`Faults.on_client_error`), so it restarts only after a node's loss.
    """

    def __init__(self, limit: int, *, tolerant: bool = False) -> None:
        self._limit, self._tolerant = limit, tolerant
        self._saved: int | None = None
        self._count = 0
        self._blamed: tuple[int, int | None] | None = None

    def record(self, loss: ActorsLost, saved: int) -> ActorsLost | None:
        """Count a loss since the checkpoint of round `saved`; return the error that ends the run, if any."""
        self._count = 1 + (self._count if saved == self._saved else 0)
        blamed = None if loss.client is None else (loss.client, loss.round)
        again = blamed is not None and blamed == self._blamed
        self._saved, self._blamed = saved, blamed
        if self._tolerant and blamed is not None:
            return loss
        if again:
            why = f"as it did before the run went back to {describe_restart_point(saved)}"
        elif self._count <= self._limit:
            return None
        elif self._limit == 0:
            return loss
        else:
            times = "once" if self._limit == 1 else f"{self._limit} times"
            why = f"the run has gone back to {describe_restart_point(saved)} {times} (engine.restarts)"
        return ActorsLost(f"{loss.message}; {why}", client=loss.client, round=loss.round)

    @property
    def count(self) -> str:
        """Number of this loss and the limit: "1 of 3"."""
        return f"{self._count} of {self._limit}"


def describe_restart_point(saved: int) -> str:
    """Return a run's restart point in words; `saved` is the checkpoint's round, 0 without one."""
    return f"the checkpoint of round {saved}" if saved else "its beginning"
