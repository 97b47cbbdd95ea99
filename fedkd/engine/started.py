"""An engine started for one run, with its data; and once more, when actors are lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedkd.plan.plan import Plan
from fedkd.scenario.schema import Scenario

if TYPE_CHECKING:
    from fedkd.data.load import Data
    from fedkd.engine.grid import EngineGrid


class StartedEngine:
    """A started engine, the data that its clients have, and the plan with nothing left open.

    Args:
        plan: The plan.
        data: The data.
        make: Returns a grid of clients as they are in the beginning.
        remake: Does so on what is left, after actors were lost.
    """

    def __init__(
        self,
        plan: Plan,
        data: Data,
        make: Callable[[], EngineGrid],
        remake: Callable[[], EngineGrid] | None = None,
    ) -> None:
        self.plan = plan
        self.data = data
        self._remake = remake or make
        self.grid = make()

    def renew(self) -> None:
        """Take another grid.

        Raises:
            ActorsLost: More was lost meanwhile.
            EngineLost: It does not come up on what is left.
        """
        self.grid.close()
        self.grid = self._remake()

    def close(self) -> None:
        """Stop its actors."""
        self.grid.close()


@contextmanager
def started_engine(plan: Plan, folder: Path, tell: Callable[[str], None]) -> Iterator[StartedEngine]:
    """Load the data, start the engine, and stop it at the end.

    Args:
        plan: What to simulate.
        folder: The run folder.
        tell: Told what takes long.

    Raises:
        UserError: The data are not there, or the scenario asks for what there is not.
        EngineLost: Ray does not start, or the actors do not come up.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    with ExitStack() as stack:
        if plan.scenario.engine.kind == "inline":
            data = _load(plan.scenario, tell)
            from fedkd.engine.clients import inline_grid
            from fedkd.engine.settling import settled_plan

            plan = settled_plan(plan, data, tell)
            engine = StartedEngine(plan, data, partial(inline_grid, plan, data, folder))
        else:
            from fedkd.engine.ray_early import early_actors
            from fedkd.engine.ray_pool import connect

            tell("starting Ray and loading the data")
            # Ray takes seconds to start, and so do imports, in actors and here; all of it at once.
            with ThreadPoolExecutor(max_workers=1) as background:
                imported = background.submit(_import_all)
                loading: Future[Data] = background.submit(_load, plan.scenario, tell)
                cluster = connect(plan.scenario.engine)
                stack.callback(cluster.close)
                imported.result()  # two threads must not import the same packages at once
                spares = early_actors(plan, cluster)
                data = loading.result()
            from fedkd.engine.clients import ray_grid
            from fedkd.engine.ray_again import ray_grid_again
            from fedkd.engine.settling import settled_plan

            plan = settled_plan(plan, data, tell, cluster)
            engine = StartedEngine(
                plan,
                data,
                partial(ray_grid, plan, data, cluster, folder, spares, tell=tell),
                partial(ray_grid_again, plan, data, cluster, folder, tell=tell),
            )
        stack.callback(engine.close)
        yield engine


def _import_all() -> None:
    """Import what a run on Ray needs, but Ray."""
    import fedkd.engine.settling
    import fedkd.federation.server_app  # noqa: F401


def _load(scenario: Scenario, tell: Callable[[str], None]) -> Data:
    from fedkd.data.load import load_data

    return load_data(scenario, progress=tell)
