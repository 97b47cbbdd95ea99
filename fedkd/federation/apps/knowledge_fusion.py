"""Fusion strategies as strategies of Flower."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import isnan, nan
from types import MappingProxyType
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedkd.clients import UploadStage
from fedkd.errors import RunFailed
from fedkd.federation.compat import sample_nodes
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record, payload_bytes, record_to_arrays
from fedkd.federation.messages.server_gate import check_reply, opened, refusal
from fedkd.fusion import Arrays, FusionStrategy, InvalidUpload, check_upload, find_deviating_uploads
from fedkd.scenario import CacheSettings
from fedkd.server import GuidanceParcel, PeerTopology, ServerKnowledge, TaskwiseFusion, Upload


class KnowledgeFusion(Strategy):
    """A fusion strategy as Flower's: ``KnowledgeFusion(KnFu(beta=10)).start(grid)``.

    Every node trains and uploads knowledge. The server fuses it in client order. The guidance comes with the
    next message to each client. The ClientApp is `fedkd.federation.client_app`, or any app with the layout in
    `fedkd.federation.messages.records`.

    Args:
        known: The server's knowledge besides the messages, of each task of a stream or of the only one.
        stages: Stages that uploads have passed (see `fedkd.clients.upload.stages`).
        knowledge_cache: This and the following are those of `fedkd.server.by_task.TaskwiseFusion`.
        min_available_nodes: Nodes that a round of Flower's own loop waits for.
    """

    def __init__(
        self,
        strategy: FusionStrategy,
        known: Callable[[int], ServerKnowledge] | ServerKnowledge | None = None,
        stages: Sequence[UploadStage] = (),
        knowledge_cache: CacheSettings | None = None,
        min_available_nodes: int = 2,
        *,
        backward: bool = False,
        exponent: float | None = None,
        peers: PeerTopology | None = None,
    ) -> None:
        self.strategy, self._stages = strategy, stages
        self._has_server, self._min_available_nodes = peers is None, min_available_nodes
        of_task = known if callable(known) else lambda task: known or ServerKnowledge()
        fusing = TaskwiseFusion(
            strategy, of_task, knowledge_cache, backward=backward, exponent=exponent, peers=peers
        )
        self._fusing = fusing
        self.cache_bytes, self.report, self.links = fusing.cache_bytes, fusing.report, fusing.links
        self.figures = fusing.figures
        self.begin_round, self.state, self.restore = fusing.move, fusing.state, fusing.restore
        self._client_of_node: dict[int, int] = {}
        self._records: dict[int, tuple[Mapping[str, np.ndarray], ArrayRecord]] = {}
        self._opened: dict[int, tuple[Message, Upload]] = {}  # by the reply's id, which holding it keeps
        self._sent = 0

    def introduce(self, node_of_client: Mapping[int, int]) -> None:
        self._client_of_node |= {node: client for client, node in node_of_client.items()}

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 3,
        *more: Any,
        **options: Any,
    ) -> Result:
        """Run all rounds (see `flwr.serverapp.strategy.Strategy.start`), without initial weights."""
        return super().start(grid, initial_arrays or ArrayRecord(), num_rounds, *more, **options)

    def summary(self) -> None:
        logging.getLogger("flwr").info("\t└──> Fusion: %s", self.strategy)

    def end_task(self, round: int, replies: Sequence[Message]) -> dict[str, float]:
        return {}

    def take_back(self, messages: Sequence[Message]) -> None:
        arrays: dict[int, dict[str, np.ndarray]] = {}  # one table for each record
        for message in messages:
            client, content = self._client_of_node.get(message.metadata.dst_node_id), message.content
            if client is None:
                continue
            settings: Any = content.config_records[msg.CONFIG] if msg.CONFIG in content else {}
            mailbox = self._fusing.of(client).mailbox
            for record, of_round in ((msg.GUIDANCE, msg.GUIDANCE_ROUND), (msg.MISSED, msg.MISSED_ROUND)):
                if record not in content:
                    continue
                sent = content.array_records[record]
                parcel = GuidanceParcel(
                    int(settings[of_round]), arrays.setdefault(id(sent), record_to_arrays(sent))
                )
                if record == msg.GUIDANCE:
                    mailbox.put(client, parcel)
                else:
                    mailbox.put_missed([client], parcel)
            for task in msg.old_tasks(content):
                name = f"{msg.OLD}{task}"
                parcel = GuidanceParcel(int(settings[name]), record_to_arrays(content.array_records[name]))
                self._fusing.at(task).mailbox.put_missed([client], parcel)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one train message per node, once there are enough, for Flower's own loop."""
        sample_nodes(grid, self._min_available_nodes, sample_size=0)
        return self.messages(msg.TRAIN, server_round, config, list(grid.get_node_ids()))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return self.messages(msg.EVALUATE, server_round, config, list(grid.get_node_ids()))

    def messages(self, kind: str, round: int, config: ConfigRecord, nodes: Sequence[int]) -> list[Message]:
        """Return one message per node, with its pending guidance."""
        if kind == msg.TRAIN:
            self._fusing.begin(self._client_of_node.values())
        measures = kind == msg.EVALUATE
        batch = []
        for node in nodes:
            client = self._client_of_node.get(node)
            mailbox = self._fusing.of(client).mailbox
            settings = ConfigRecord({**config, msg.SERVER_ROUND: round})
            content = RecordDict({msg.CONFIG: settings})
            if self.strategy.capabilities.brings_model:
                model = self._fusing.of(client).model
                content[msg.ARRAYS] = self._record(model)
                self._sent += 0 if measures else sum(values.nbytes for values in model.values())
            own = mailbox.take(client)
            if own is not None:
                settings[msg.GUIDANCE_ROUND], content[msg.GUIDANCE] = own.round, self._record(own.arrays)
            # Weights may come at any time; other guidance must not depend on when a client is evaluated.
            if not measures or "weights" in self.strategy.capabilities.needs:
                missed = mailbox.take_missed(client, leave=measures)
                if missed is not None:
                    settings[msg.MISSED_ROUND] = missed.round
                    content[msg.MISSED] = self._record(missed.arrays)
                    self._sent += 0 if measures else missed.size
            # Only with a train message, for the same reason.
            old = self._fusing.take_old(client) if kind == msg.TRAIN else {}
            for task, parcel in old.items():
                settings[f"{msg.OLD}{task}"] = parcel.round
                content[f"{msg.OLD}{task}"] = self._record(parcel.arrays)
                self._sent += parcel.size
            batch.append(Message(content, node, kind, group_id=str(round)))
        if kind == msg.TRAIN:
            self._add_requests(round, batch)
        return batch

    def _add_requests(self, round: int, messages: Sequence[Message]) -> None:
        clients = [self._client_of_node.get(message.metadata.dst_node_id) for message in messages]
        for task, fusing in self._fusing.of_clients(clients).items():
            asked = fusing.request(round)
            if asked is None:
                continue
            request = arrays_to_record({msg.SAMPLES: asked.astype(np.int32)})
            for client, message in zip(clients, messages, strict=True):
                if self._fusing.task_of(client) == task:
                    message.content[msg.REQUEST] = request
                    # Without a server every client draws the same samples from the common seed.
                    self._sent += payload_bytes(RecordDict({msg.REQUEST: request})) * self._has_server

    def _record(self, arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
        """Return one record for all receivers of the same arrays, to send it once."""
        if id(arrays) not in self._records:
            self._records[id(arrays)] = (arrays, arrays_to_record(arrays))  # holding them reserves the id
        return self._records[id(arrays)][1]

    def fuse(
        self,
        round: int,
        replies: Sequence[Message],
        *,
        begun: Mapping[int, int] = MappingProxyType({}),
        awaited: int = 0,
    ) -> None:
        """Fuse the knowledge of all replies, without errors and in client order; keep the guidance.

        `begun` has the rounds in which clients began their jobs, if not this one. `awaited` is the number of
        the round's replies that come with another call.
        """
        for client, misfit in self.misfits(replies).items():
            raise refusal(misfit, client, round)
        uploads = {}
        for reply in replies:
            client = self._client_of_node[reply.metadata.src_node_id]
            uploads[client] = replace(self._opened[id(reply)][1], round=begun.get(client, round))
        self._records.clear()
        self._opened.clear()
        self._sent += self._fusing.fuse(round, uploads, self._client_of_node.values(), awaited=awaited)

    def misfits(self, replies: Sequence[Message]) -> dict[int, InvalidUpload]:
        """Open uploads and keep them for `fuse`; return reasons of refusals by client."""
        found: dict[int, InvalidUpload] = {}
        alike: dict[tuple[int, str], dict[int, Arrays]] = {}
        for reply in replies:
            node = reply.metadata.src_node_id
            if id(reply) in self._opened:
                continue
            client = self._client_of_node.get(node)
            try:
                if client is None:
                    client = self._meet(reply)
                check_reply(client, reply, (msg.NUM_EXAMPLES,))
                upload = opened(reply, self._stages, self.strategy.kinds_of)
                if self.strategy.capabilities.sends != "nothing":
                    fusing = self._fusing.of(client)
                    check_upload(self.strategy, upload.arrays, *fusing.expects(client))
                    group = self._fusing.task_of(client), fusing.architecture_of(client)
                    alike.setdefault(group, {})[client] = upload.arrays
                self._opened[id(reply)] = reply, upload
            except InvalidUpload as misfit:
                found[msg.sender(reply) if client is None else client] = misfit
        for uploads in alike.values():
            found |= find_deviating_uploads(dict(sorted(uploads.items())), self.strategy)
        return dict(sorted(found.items()))

    def _meet(self, reply: Message) -> int:
        """Return the client that a node names; raise `InvalidUpload` if another node is that client."""
        client, node = msg.sender(reply), reply.metadata.src_node_id
        if client in self._client_of_node.values():
            raise InvalidUpload(f"it claims to be client {client}, but another node is that client")
        self._client_of_node[node] = client
        return client

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fuse the replies; return the mean metrics, without weights.

        Raises:
            RunFailed: There is no reply.
        """
        replies = list(replies)
        if not replies:
            raise RunFailed("no node has answered", round=server_round)
        answered = _answered(replies)
        self.fuse(server_round, answered)
        return None, _mean_metrics(answered)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        answered = _answered(replies)
        for reply in answered:
            if reply.metadata.src_node_id not in self._client_of_node:
                client = self._meet(reply)
                self._fusing.of(client).mailbox.meet(client)
        return _mean_metrics(answered)

    def sent_bytes(self) -> int:
        """Return the payload to clients since the last call; without a server, their receipts."""
        sent, self._sent = self._sent, 0
        return sent


def _answered(replies: Iterable[Message]) -> list[Message]:
    return sorted((reply for reply in replies if not reply.has_error()), key=msg.sender)


def _mean_metrics(replies: Sequence[Message]) -> MetricRecord | None:
    if not replies:
        return None
    rows = [msg.metrics_of(reply) for reply in replies]
    values = {name: [row[name] for row in rows] for name in rows[0] if name != msg.NUM_EXAMPLES}
    measured = {name: [value for value in of_all if not isnan(value)] for name, of_all in values.items()}
    return MetricRecord({name: float(np.mean(m)) if m else nan for name, m in measured.items()})
