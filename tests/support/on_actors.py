"""Several scenarios on the same Ray actors: to start some takes longer than to run a short scenario."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

from flwr.app import Context, Message
from node_subset import NodeSubset

from fedkd.data.load import Data
from fedkd.engine.clients import ScenarioWorkload
from fedkd.engine.ray.grid import RayGrid
from fedkd.federation.apps.server_app import make_rounds
from fedkd.federation.compat import node_id_of
from fedkd.federation.run_control import RunControl
from fedkd.plan.plan import resolve_plan
from fedkd.scenario.schema import Scenario


class SharedActors:
    """Two actors that hold the clients of all scenarios, those of one after those of another.

    Args:
        scenarios: The resolved scenarios.
        data: Data of each.
    """

    def __init__(self, scenarios: Sequence[Scenario], data: Sequence[Data]) -> None:
        self._scenarios, self._data = scenarios, data
        numbers = [scenario.data.clients for scenario in scenarios]
        self._first = [0, *accumulate(numbers)]

        class Clients:  # pickled by value, as actors cannot import tests
            def __init__(self, texts: list[str], data: list[Data], owners: list[tuple[int, int]]) -> None:
                self._workloads = list(map(ScenarioWorkload, texts, data))
                self._owners = owners

            def app(self, message: Message, context: Context) -> Message:
                return self._workloads[0].app(message, context)

            def together(self, requests: Sequence[tuple[Message, Context]]) -> list[Message | Exception]:
                return self._workloads[0].together(requests)

            def context(self, index: int) -> Context:
                scenario, client = self._owners[index]
                return self._workloads[scenario].context(client)

        texts = [scenario.model_dump_json() for scenario in scenarios]
        owners = [(place, client) for place, number in enumerate(numbers) for client in range(number)]
        self.grid = RayGrid(Clients, (texts, list(data), owners), [1.0] * len(owners), actors=2)
        self.grid.wait_until_ready()

    def metrics(self, place: int, folder: Path) -> bytes:
        """Run one of the scenarios and return what it wrote down."""
        plan, data = resolve_plan(self._scenarios[place]), self._data[place]
        nodes = [node_id_of(client) for client in range(self._first[place], self._first[place + 1])]
        folder.mkdir()
        make_rounds(plan, NodeSubset(self.grid, nodes), data, RunControl(folder)).run()
        return (folder / "metrics.jsonl").read_bytes()


@contextmanager
def shared_actors(scenarios: Sequence[Scenario], data: Sequence[Data]) -> Iterator[SharedActors]:
    """Start them, and stop them."""
    actors = SharedActors(scenarios, data)
    try:
        yield actors
    finally:
        actors.grid.close()
