"""Find the client behind a Flower context: on engines, in Flower's simulation, on deployed nodes.

A deployed node's folder holds its share of the data (`fedkd.data.shares.share_file`) and the scenario. The
node sends the scenario's digest, and a server with another digest refuses it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path

from flwr.app import Context, RecordDict

from fedkd.clients import Client, ClientFactory, with_test_sample
from fedkd.data import SHARE_MANIFEST, Share, load_data, read_share
from fedkd.errors import UserError
from fedkd.federation.apps.node_state import NodeState
from fedkd.federation.compat import RUN_ID, node_id_of
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record, record_to_arrays
from fedkd.plan import Plan, load_plan, open_plan
from fedkd.scenario import relocatable_digest
from fedkd.storage import expand_path
from fedkd.tracking import SCENARIO_FILE
from fedkd.training import limit_torch_threads

DATA_KEY = "data"
"""Key of the folder in a node's configuration and in the server's run configuration."""
PARTITION_KEY = "partition-id"


@dataclass(frozen=True, eq=False)
class Participant:
    """The share of a client or a server in its folder."""

    folder: Path
    plan: Plan
    share: Share

    @property
    def federation(self) -> str:
        """Digest common to all participants: scenario, classes, scale, transfer set."""
        both = f"{relocatable_digest(self.plan.scenario)} {self.share.common_digest()}"
        return sha256(both.encode()).hexdigest()


def node_of(context: Context) -> Participant | None:
    """Return the node of a client's context (None: a simulation); `UserError` for another's share."""
    named = context.node_config.get(DATA_KEY)
    if named is None:
        return None
    found = load_participant(str(named))
    client, own = context.node_config.get(PARTITION_KEY), found.share.client
    if client is None:
        raise UserError(
            f"must have {PARTITION_KEY} beside {DATA_KEY} = {found.folder}, the share of {found.share.owner}",
            key="node-config",
        )
    if own is None or int(client) != own:
        raise UserError(
            f"this node is client {client}, but {found.folder} has the samples of {found.share.owner}",
            key="node-config",
        )
    return found


def server_of(context: Context) -> Participant | None:
    """Return the server's share (None: a simulation); `UserError` for another's folder."""
    named = str(context.run_config.get(DATA_KEY, ""))
    if not named:
        return None
    found = load_participant(named)
    if found.share.client is not None:
        raise UserError(
            f"{found.folder} has the samples of {found.share.owner}", key=f"run-config.{DATA_KEY}"
        )
    return found


def load_participant(folder: str) -> Participant:
    path = expand_path(folder).absolute()
    try:
        written = (path / SHARE_MANIFEST).stat().st_mtime_ns
    except OSError:
        written = 0
    return _read_once(path, written)


@lru_cache(maxsize=64)
def _read_once(folder: Path, written: int) -> Participant:
    share = read_share(folder)
    if not (folder / SCENARIO_FILE).is_file():
        raise UserError(f"has no {SCENARIO_FILE} beside the share of {share.owner}", file=str(folder))
    plan = with_loop_executor(load_plan(folder / SCENARIO_FILE, written=False))
    clients = plan.scenario.data.clients
    if share.data.num_clients != clients:
        raise UserError(
            f"belongs to a federation of {share.data.num_clients} clients, but the scenario has {clients}",
            file=str(folder / SHARE_MANIFEST),
        )
    return Participant(folder, plan, share)


def with_loop_executor(plan: Plan) -> Plan:
    return plan.with_executor("loop") if plan.scenario.training.executor == "auto" else plan


class LocalContext(Context):
    """The context of a client that lives in this process; `build` makes it on first use."""

    def __init__(self, client: int, threads: int, build: Callable[[], Client]) -> None:
        super().__init__(RUN_ID, node_id_of(client), {PARTITION_KEY: client}, RecordDict(), run_config={})
        self.threads = threads
        self.client = cache(build)


def local_context(factory: ClientFactory, client: int) -> LocalContext:
    threads = factory.plan.scenario.engine.threads_per_client
    return LocalContext(client, threads, lambda: factory.build(client))


@contextmanager
def client_behind(context: Context, step: str = "") -> Iterator[Client]:
    """Yield the client of a context, for the message named `step`.

    On fedkd's engines the live client stays in its process, and a deployed node keeps it in its folder. On
    Flower's simulation it is rebuilt from the context's state and written back.
    """
    if isinstance(context, LocalContext):
        with limit_torch_threads(context.threads):
            client = context.client()
        with client.trainer.threads(context.threads):
            yield client
        return
    if (node := node_of(context)) is not None:
        assert node.share.client is not None
        state = NodeState(node.folder, context.run_id, node.share.client, node.federation)
        with state.held():
            client = ClientFactory(node.plan, node.share.data).build(node.share.client)
            with client.trainer.threads(node.plan.scenario.engine.threads_per_client):
                if (known := state.at(step)) is not None:
                    client.restore(known)
                yield client
            state.keep(step, client.state())
        return
    factory = factory_of(plan_of(context))
    partition, clients = int(context.node_config[PARTITION_KEY]), factory.plan.scenario.data.clients
    if partition >= clients:
        raise UserError(
            f"the federation has more nodes than the scenario's {clients} clients;"
            f" run it with num-supernodes={clients}",
            key="data.clients",
        )
    client = factory.build(partition)
    with client.trainer.threads(factory.plan.scenario.engine.threads_per_client):
        if msg.STATE in context.state:
            client.restore(record_to_arrays(context.state.array_records[msg.STATE]))
        yield client
    context.state[msg.STATE] = arrays_to_record(client.state())


def plan_of(context: Context) -> Plan:
    """Return the plan of the file ``scenario``, relative to here or the app, with the overrides ``set``."""
    path = expand_path(str(context.run_config.get("scenario", "")), key="run-config.scenario")
    if not path.is_absolute() and not path.exists():
        path = Path(__file__).resolve().parents[3] / path
    if not path.is_file():
        raise UserError(f"no such scenario: {path}", key="run-config.scenario")
    return _load_once(str(path), str(context.run_config.get("set", "")))


@lru_cache(maxsize=8)
def _load_once(path: str, overrides: str) -> Plan:
    return with_loop_executor(load_plan(path, overrides.split()))


def factory_of(plan: Plan) -> ClientFactory:
    """Return the clients of a plan in a process without an engine of fedkd's."""
    return _factory_once(plan.scenario.model_dump_json())


@lru_cache(maxsize=1)
def _factory_once(scenario_json: str) -> ClientFactory:
    plan = open_plan(scenario_json)
    data = load_data(plan.scenario)
    return ClientFactory(with_test_sample(plan, data), data)
