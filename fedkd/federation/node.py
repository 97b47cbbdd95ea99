"""A deployed node: a client with only its own samples, in its own folder.

The folder is the client's share of the data (`fedkd.data.share_file`) with the scenario beside it. The node
follows that scenario and names its digest, so a server with another one refuses it before training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from flwr.app import Context

from fedkd.clients.base import Client
from fedkd.clients.factory import ClientFactory
from fedkd.data.share import Share
from fedkd.data.share_file import MANIFEST, read_share
from fedkd.errors import UserError
from fedkd.federation.node_state import NodeState
from fedkd.paths import expanded
from fedkd.plan.load import load_plan
from fedkd.plan.plan import Plan
from fedkd.run_folder import SCENARIO
from fedkd.scenario.identity import digest_anywhere

DATA = "data"
"""Key of the folder in a node's configuration and in the server's run configuration."""
PARTITION = "partition-id"


@dataclass(frozen=True, eq=False)
class Participant:
    """A client or a server as its folder has it."""

    folder: Path
    plan: Plan
    share: Share

    @property
    def federation(self) -> str:
        """Digest common to all participants: scenario, classes, scale, transfer set."""
        both = f"{digest_anywhere(self.plan.scenario)} {self.share.common_digest()}"
        return sha256(both.encode()).hexdigest()


def node_of(context: Context) -> Participant | None:
    """Return the node of a client's context; None: a simulation.

    Raises:
        UserError: The folder is not the share of the node's client.
    """
    named = context.node_config.get(DATA)
    if named is None:
        return None
    found = participant(str(named))
    client, own = context.node_config.get(PARTITION), found.share.client
    if client is None:
        raise UserError(
            f"names {found.folder}, the share of {found.share.owner}, and no {PARTITION}", key="node-config"
        )
    if own is None or int(client) != own:
        raise UserError(
            f"this node is client {client}, but {found.folder} has the samples of {found.share.owner}",
            key="node-config",
        )
    return found


def server_of(context: Context) -> Participant | None:
    """Return the server's share; None: a simulation.

    Raises:
        UserError: The folder is not the server's share.
    """
    named = str(context.run_config.get(DATA, ""))
    if not named:
        return None
    found = participant(named)
    if found.share.client is not None:
        raise UserError(f"{found.folder} has the samples of {found.share.owner}", key=f"run-config.{DATA}")
    return found


def participant(folder: str) -> Participant:
    """Read a participant's folder; raise `UserError` if it is none."""
    path = expanded(folder).absolute()
    try:
        written = (path / MANIFEST).stat().st_mtime_ns
    except OSError:
        written = 0
    return _read_once(path, written)


@lru_cache(maxsize=64)
def _read_once(folder: Path, written: int) -> Participant:
    share = read_share(folder)
    if not (folder / SCENARIO).is_file():
        raise UserError(f"has no {SCENARIO} beside the share of {share.owner}", file=str(folder))
    plan = alone(load_plan(folder / SCENARIO, written=False))
    clients = plan.scenario.data.clients
    if share.data.num_clients != clients:
        raise UserError(
            f"is of a federation of {share.data.num_clients} clients, the scenario beside it of {clients}",
            file=str(folder / MANIFEST),
        )
    return Participant(folder, plan, share)


def alone(plan: Plan) -> Plan:
    """Return the plan for clients with a process each."""
    return plan.with_executor("loop") if plan.scenario.training.executor == "auto" else plan


@contextmanager
def client_of_node(node: Participant, run: int, step: str) -> Iterator[Client]:
    """Yield a node's client as it is before the message `step`; keep its state if the block ends well."""
    assert node.share.client is not None
    state = NodeState(node.folder, run, node.share.client, node.federation)
    with state.held():
        client = ClientFactory(node.plan, node.share.data).build(node.share.client)
        with client.threads(node.plan.scenario.engine.threads_per_client):
            if (known := state.at(step)) is not None:
                client.restore(known)
            yield client
        state.keep(step, client.state())
