"""Any fusion strategy as a strategy of Flower."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedkd.federation import messages as msg
from fedkd.federation.arrays import from_record, to_record
from fedkd.federation.guidance import check_guidance, guidance_records
from fedkd.fusion.blas import one_blas_thread
from fedkd.fusion.kinds import Kind
from fedkd.fusion.strategy import FusionStrategy, Knowledge
from fedkd.fusion.views import ServerModels
from fedkd.randomness import numpy_generator


@dataclass(frozen=True)
class Pending:
    """Guidance that has been fused and not been sent yet.

    Attributes:
        round: Round it was fused in.
        guidance: Record with the guidance's arrays; one object for all where it is shared.
    """

    round: int
    guidance: ArrayRecord


@dataclass(frozen=True)
class ServerKnowledge:
    """What the server knows besides the messages.

    Args:
        transfer_size: Number of transfer samples M, for strategies that ask for some of them; None: the whole
            transfer set is always used.
        labels: True labels of the transfer set `[M]`, for strategies that need them.
        server: Makes the server's side of a round, for strategies that train models there.
        seed: What the server's own draws derive from.
    """

    transfer_size: int | None = None
    labels: np.ndarray | None = None
    server: Callable[[int], ServerModels] | None = None
    seed: int = 0


@dataclass(frozen=True)
class LastKnowledge:
    """What a client uploaded last, kept for strategies that use the knowledge of missing clients."""

    round: int
    arrays: Mapping[str, np.ndarray]
    samples: int


class KnowledgeFusion(Strategy):
    """Runs a fusion strategy as a Flower strategy: ``KnowledgeFusion(KnFu(beta=10)).start(grid)``.

    Every node trains and uploads knowledge; the server fuses it, in client order; the guidance rides on the
    next message to each client, whichever that is. Its ClientApp is `fedkd.federation.client_app.app`, or
    any app that keeps to the layout in `fedkd.federation.messages`.

    Args:
        strategy: How knowledge is fused.
        context: What the server knows besides the messages; only some strategies need it.
    """

    def __init__(self, strategy: FusionStrategy, context: ServerKnowledge | None = None) -> None:
        self.strategy = strategy
        self._context = context or ServerKnowledge()
        self._request: np.ndarray | None = None
        self.weights: tuple[tuple[int, ...], np.ndarray] | None = None
        """Clients [N] and effectiveness weights [N, N] of the last fusion, where the strategy has any."""
        self.present: tuple[int, ...] = ()
        """Those of these clients that took part in the last round; others are there with old knowledge."""
        self._pending: dict[int, Pending] = {}  # the newest for each client, until it is sent
        self._for_everyone: Pending | None = None  # what a node receives whose client is not known yet
        self._started = False
        self._memory: dict[str, np.ndarray] = {}
        self._last: dict[int, LastKnowledge] = {}
        self._client_of_node: dict[int, int] = {}

    def introduce(self, node_of_client: Mapping[int, int]) -> None:
        """Say which node simulates each client.

        Of a node that was not introduced it is known once it has replied, so guidance can find a client that
        has never taken part only if it is introduced.
        """
        self._client_of_node |= {node: client for client, node in node_of_client.items()}

    def turn_to(self, context: ServerKnowledge) -> None:
        """Work with the transfer set of another task from now on."""
        self._context = context

    def forget(self) -> None:
        """Forget what was fused of the last task: its transfer samples are not the next one's.

        What a strategy that exchanges weights remembers is about models, and stays.
        """
        if "weights" not in self.strategy.needs:
            self._memory = {}
            self._last = {}

    def start(  # type: ignore[override]
        self, grid: Grid, initial_arrays: ArrayRecord | None = None, num_rounds: int = 3, **options: Any
    ) -> Result:
        """Run all rounds (see `flwr.serverapp.strategy.Strategy.start`); there are no initial weights."""
        return super().start(grid, initial_arrays or ArrayRecord(), num_rounds, **options)

    def summary(self) -> None:
        """Log the strategy and its hyper-parameters."""
        logging.getLogger("flwr").info("\t└──> Fusion: %s", self.strategy)

    # Messages -----------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one train message per node of the grid, with its pending guidance."""
        if not self._started:
            self._begin()
        messages = self._messages(msg.TRAIN, server_round, config, grid)
        self._request = None
        if self._context.transfer_size is not None:
            generator = numpy_generator(self._context.seed, "request", round=server_round)
            self._request = self.strategy.request(self._context.transfer_size, self._memory, generator)
        if self._request is not None:
            request = to_record({msg.SAMPLES: self._request.astype(np.int32)})
            for message in messages:
                message.content[msg.REQUEST] = request
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one evaluate message per node of the grid, with its pending guidance."""
        return self._messages(msg.EVALUATE, server_round, config, grid)

    def _messages(self, kind: str, round: int, config: ConfigRecord, grid: Grid) -> list[Message]:
        batch = []
        for node_id in grid.get_node_ids():
            settings = ConfigRecord({**config, msg.SERVER_ROUND: round})
            content = RecordDict({msg.CONFIG: settings})
            client = self._client_of_node.get(node_id)
            pending = self._for_everyone if client is None else self._pending.pop(client, None)
            if pending is not None:
                settings[msg.GUIDANCE_ROUND] = pending.round
                content[msg.GUIDANCE] = pending.guidance
            batch.append(Message(content, node_id, kind, group_id=str(round)))
        return batch

    def _begin(self) -> None:
        self._started = True
        if not self.strategy.needs & {"weights", "server"} or self._context.server is None:
            return
        guidance = self.strategy.prologue(self._context.server(0))
        if guidance is not None:
            self._memory = dict(guidance.memory)
            self._send_to_everyone(Pending(0, to_record(guidance.shared)))

    def _send_to_everyone(self, pending: Pending) -> None:
        self._for_everyone = pending
        self._pending = dict.fromkeys(self._client_of_node.values(), pending)

    # Fusion -------------------------------------------------------------------------------------------

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fuse the knowledge of all replies without error and keep every client's guidance for later."""
        uploads = sorted((reply for reply in replies if not reply.has_error()), key=msg.sender)
        for reply in uploads:
            self._client_of_node[reply.metadata.src_node_id] = msg.sender(reply)
        self.weights = None
        if uploads and self.strategy.sends != "nothing":
            self._fuse(server_round, uploads)
        return None, _mean_metrics(uploads)

    def _fuse(self, round: int, uploads: list[Message]) -> None:
        present = {}
        for reply in uploads:
            samples = int(reply.content.metric_records[msg.METRICS][msg.NUM_EXAMPLES])  # type: ignore[arg-type]
            values = from_record(reply.content.array_records[msg.ARRAYS])
            present[msg.sender(reply)] = LastKnowledge(round, values, samples)
        self.present = tuple(sorted(present))
        if self.strategy.stale_decay is None:
            known = present
        else:
            # Copied: the arrays may lie in shared memory that is only lent for the round.
            self._last |= {
                client: LastKnowledge(item.round, {k: v.copy() for k, v in item.arrays.items()}, item.samples)
                for client, item in present.items()
            }
            known = self._last
        clients = tuple(sorted(known))
        knowledge = self._knowledge(known, clients, round)
        with one_blas_thread():
            guidance = self.strategy.fuse(knowledge, self._memory)
        check_guidance(guidance, knowledge)
        self._memory = dict(guidance.memory)
        if guidance.weights is not None:
            self.weights = (clients, guidance.weights)
        records = guidance_records(guidance, knowledge)
        if guidance.everyone:
            self._send_to_everyone(Pending(round, records[clients[0]]))
            return
        for client in present.keys() | guidance.absent.keys():
            if records[client]:
                self._pending[client] = Pending(round, records[client])

    def _knowledge(
        self, known: Mapping[int, LastKnowledge], clients: tuple[int, ...], round: int
    ) -> Knowledge:
        items = [known[client] for client in clients]
        uploaded = {name: [item.arrays[name] for item in items] for name in items[0].arrays}
        kinds = self.strategy.kinds_of(items[0].arrays)
        stacked = {kind: np.stack(uploaded.pop(name)) for name, kind in kinds.items() if kind.is_stacked}
        labels = self._context.labels if "transfer_labels" in self.strategy.needs else None
        if labels is not None and self._request is not None:
            labels = labels[self._request]
        trains = self._context.server is not None and self.strategy.needs & {"weights", "server"}
        return Knowledge(
            clients=clients,
            logits=stacked.get(Kind.TRANSFER_LOGITS),
            samples=np.array([item.samples for item in items], dtype=np.int64),
            label_counts=stacked.get(Kind.LABEL_COUNTS),
            age=np.array([round - item.round for item in items], dtype=np.int64),
            extra=uploaded,
            request=self._request,
            labels=labels,
            seed=self._context.seed,
            server=self._context.server(round) if trains and self._context.server else None,
        )

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the mean of the clients' metrics."""
        answered = sorted((reply for reply in replies if not reply.has_error()), key=msg.sender)
        for reply in answered:
            self._client_of_node[reply.metadata.src_node_id] = msg.sender(reply)
        return _mean_metrics(answered)

    # State --------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Return all that a later round depends on, keyed by client so that node ids may change."""
        arrays = {f"memory/{name}": values for name, values in self._memory.items()}
        clients_of: dict[int, list[int]] = {}  # of one record, which is saved once for all that wait for it
        for client in sorted(self._pending):
            clients_of.setdefault(id(self._pending[client].guidance), []).append(client)
        for number, clients in enumerate(clients_of.values()):
            key, pending = f"pending/{number}", self._pending[clients[0]]
            arrays |= {f"{key}/guidance/{name}": v for name, v in from_record(pending.guidance).items()}
            arrays[f"{key}/round"] = np.array(pending.round)
            arrays[f"{key}/clients"] = np.array(clients)
        for client, item in self._last.items():
            arrays |= {f"last/{client}/arrays/{name}": values for name, values in item.arrays.items()}
            arrays[f"last/{client}/round"] = np.array(item.round)
            arrays[f"last/{client}/samples"] = np.array(item.samples)
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from a `state`; clients have to be introduced before the next messages."""
        self._started = True
        # A strategy may call what it remembers anything, with slashes too.
        self._memory = {
            path.removeprefix("memory/"): values
            for path, values in arrays.items()
            if path.startswith("memory/")
        }
        tree = _unflatten({path: v for path, v in arrays.items() if not path.startswith("memory/")})
        self._pending = {}
        for item in tree.get("pending", {}).values():
            pending = Pending(int(item["round"]), to_record(item["guidance"]))
            self._pending |= dict.fromkeys(item["clients"].tolist(), pending)
        self._last = {
            int(client): LastKnowledge(int(item["round"]), item["arrays"], int(item["samples"]))
            for client, item in tree.get("last", {}).items()
        }


def _mean_metrics(replies: list[Message]) -> MetricRecord | None:
    if not replies:
        return None
    rows = [reply.content.metric_records[msg.METRICS] for reply in replies]
    names = [name for name in rows[0] if name != msg.NUM_EXAMPLES]
    return MetricRecord({name: float(np.mean([float(row[name]) for row in rows])) for name in names})  # type: ignore[arg-type]


def _unflatten(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, values in arrays.items():
        *folders, leaf = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = values
    return tree
