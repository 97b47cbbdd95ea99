"""From a Flower context to the client behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, RecordDict

from fedkd.clients.base import Client
from fedkd.clients.factory import ClientFactory
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.federation import messages as msg
from fedkd.federation.arrays import from_record, to_record
from fedkd.federation.compat import RUN_ID, node_id_of
from fedkd.federation.node import alone, client_of_node, node_of
from fedkd.paths import expanded
from fedkd.plan.load import load_plan
from fedkd.plan.plan import Plan, open_plan
from fedkd.training.device import torch_threads


class LocalContext(Context):
    """The context of a client that lives in this process; `build` makes it on first use."""

    def __init__(self, client: int, threads: int, build: Callable[[], Client]) -> None:
        super().__init__(
            run_id=RUN_ID,
            node_id=node_id_of(client),
            node_config={"partition-id": client},
            state=RecordDict(),
            run_config={},
        )
        self.threads = threads
        self._build = build
        self._client: Client | None = None

    def client(self) -> Client:
        """Return the live client."""
        if self._client is None:
            self._client = self._build()
        return self._client


def local_context(factory: ClientFactory, client: int) -> LocalContext:
    """Return the context of a client on one of fedkd's engines."""
    threads = factory.plan.scenario.engine.threads_per_client
    return LocalContext(client, threads, lambda: factory.build(client))


@contextmanager
def client_behind(context: Context, step: str = "") -> Iterator[Client]:
    """Yield the client of a context, for the message named `step`.

    On fedkd's engines the live client stays in its process. A deployed node keeps its client in its folder.
    Flower's simulation moves the context between processes: the client is rebuilt from the context's state
    and written back to it.
    """
    if isinstance(context, LocalContext):
        with torch_threads(context.threads):
            client = context.client()
        with client.threads(context.threads):
            yield client
        return
    if (node := node_of(context)) is not None:
        with client_of_node(node, context.run_id, step) as client:
            yield client
        return
    factory = factory_of(plan_of(context))
    client = factory.build(_partition(context, factory.plan))
    with client.threads(factory.plan.scenario.engine.threads_per_client):
        if msg.STATE in context.state:
            client.restore(from_record(context.state.array_records[msg.STATE]))
        yield client
    context.state[msg.STATE] = to_record(client.state())


def _partition(context: Context, plan: Plan) -> int:
    partition, clients = int(context.node_config["partition-id"]), plan.scenario.data.clients
    if partition >= clients:
        raise UserError(
            f"the federation has more nodes than the scenario's {clients} clients;"
            f" run it with num-supernodes={clients}",
            key="data.clients",
        )
    return partition


def plan_of(context: Context) -> Plan:
    """Return the plan of the scenario in a Flower run configuration.

    Keys: ``scenario`` (a file; relative to the working folder, else to the app's folder), ``set``
    (overrides separated by spaces).
    """
    path = expanded(str(context.run_config.get("scenario", "")), key="run-config.scenario")
    if not path.is_absolute() and not path.exists():
        path = Path(__file__).resolve().parents[2] / path
    if not path.is_file():
        raise UserError(f"no such scenario: {path}", key="run-config.scenario")
    return _load_once(str(path), str(context.run_config.get("set", "")))


@lru_cache(maxsize=8)
def _load_once(path: str, overrides: str) -> Plan:
    return alone(load_plan(path, overrides.split()))


def factory_of(plan: Plan) -> ClientFactory:
    """Return the clients of a plan in a process without an engine of fedkd's."""
    return _factory_once(plan.scenario.model_dump_json())


@lru_cache(maxsize=1)
def _factory_once(scenario_json: str) -> ClientFactory:
    plan = open_plan(scenario_json)
    return ClientFactory(plan, load_data(plan.scenario))
