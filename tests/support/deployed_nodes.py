"""A federation of deployed nodes in this process: apps, folders and messages, without the sockets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from node_subset import NodeSubset

from fedkd.deployment.partition import client_folder, write_partition
from fedkd.engine.inline import InlineGrid
from fedkd.federation.apps.client_app import client_app
from fedkd.federation.apps.server_app import server_app
from fedkd.federation.compat import RUN_ID, SERVER_NODE_ID, node_id_of
from fedkd.plan.plan import Plan

SMALL: dict[str, Any] = {
    "name": "deployed",
    "seed": 5,
    "rounds": 2,
    "data": {
        "clients": 3,
        "partition": {"alpha": 1.0, "samples_per_client": 40},
        "transfer": {"size": 20},
        "test_size": 30,
    },
    "clients": [
        {"model": "mlp", "args": {"hidden": [12]}},
        {"model": "lenet"},
        {"model": "random-forest", "args": {"trees": 3}},
    ],
    "training": {"batch_size": 10, "optimizer_state": "kept"},
    "fusion": {"strategy": "knfu"},
    "engine": {"kind": "inline"},
}
"""Three architectures, one of them no network."""


def node_context(folder: Path, client: int, run: int = RUN_ID) -> Context:
    """Return the context of a node that has just been started, for a run by its number."""
    return Context(run, node_id_of(client), {"partition-id": client, "data": str(folder)}, RecordDict(), {})


class Deployed:
    """A scenario's folders, and the nodes that read them.

    Args:
        plan: What is dealt.
        folder: Where to.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = write_partition(plan, folder)
        self.clients = plan.scenario.data.clients
        self._runs = 0

    def of_client(self, client: int) -> Path:
        return self.folder / client_folder(client)

    def contexts(self) -> dict[int, Context]:
        """Return those of all nodes, for a run that was not yet."""
        self._runs += 1
        return {n: node_context(self.of_client(n), n, self._runs) for n in range(self.clients)}

    def run(
        self,
        out: Path,
        contexts: Mapping[int, Context] | None = None,
        app: Callable = client_app,
        **config: Any,
    ) -> bytes:
        """Run the ServerApp on the nodes and return the metrics.

        Args:
            out: Run folder.
            contexts: Of the nodes, by their place; absent: every client's.
            app: What the nodes run.
            config: Of the run.
        """
        found = contexts or self.contexts()
        grid = InlineGrid(app, lambda place: found[place], len(found))
        nodes = NodeSubset(
            grid, [node_id_of(place) for place in found]
        )  # which of them is who, it does not say
        run_config = {"data": str(self.folder / "server"), "out": str(out), "wait": 0.1, **config}
        server_app(nodes, Context(RUN_ID, SERVER_NODE_ID, {}, RecordDict(), run_config))
        return (out / "metrics.jsonl").read_bytes()
