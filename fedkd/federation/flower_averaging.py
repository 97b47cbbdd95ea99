"""Flower's own strategies, which average weights of equal architectures and BatchNorm's statistics."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import Strategy

from fedkd.clients import UploadStage
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record, payload_bytes, record_to_arrays
from fedkd.federation.messages.server_gate import check_reply, opened, refusal
from fedkd.federation.server_strategy import ServerStrategy
from fedkd.fusion import Arrays, FusionStrategy, InvalidUpload, check_weight, upload_kinds
from fedkd.server import OrthogonalTraining, Upload
from fedkd.storage import add_prefix, strip_prefix

WEIGHTS_PREFIX, STRATEGY_PREFIX, ORTHOGONAL_PREFIX = "weights/", "strategy/", "orthogonal/"


class FlowerAveraging(ServerStrategy):
    """Average the clients' weights by one of Flower's strategies.

    `half` is the strategy's part on the clients. `stages` are those that uploads have passed. `orthogonal`
    keeps the average out of the subspaces of old tasks.
    """

    def __init__(
        self,
        strategy: Strategy,
        half: FusionStrategy,
        weights: Arrays,
        stages: Sequence[UploadStage] = (),
        orthogonal: OrthogonalTraining | None = None,
    ) -> None:
        self._strategy, self._half, self._weights = strategy, half, arrays_to_record(weights)
        self._stages, self._orthogonal = stages, orthogonal
        self._task = 0  # that all clients are at, where anything depends on it
        self._took_part: frozenset[int] = frozenset()  # nodes in this round
        self._opened: dict[int, tuple[Message, Upload]] = {}  # by the reply's id, which holding it keeps
        self._sent = 0

    def begin_round(self, task_of: Mapping[int, int]) -> None:
        self._task = next(iter(task_of.values()), 0)

    def messages(self, kind: str, round: int, config: ConfigRecord, nodes: Sequence[int]) -> list[Message]:
        """Return the messages of Flower's strategy, or the average for all nodes.

        At the end of a task, orthogonal training sends participants its bases and asks for sketches.
        """
        # Flower's strategies need only the nodes of a grid, and take all of them.
        grid: Any = SimpleNamespace(get_node_ids=lambda: nodes)
        if kind == msg.EVALUATE:
            return list(self._strategy.configure_evaluate(round, self._weights, config, grid))
        if kind == msg.TRAIN:
            messages = list(self._strategy.configure_train(round, self._weights, config, grid))
        else:
            messages = []
            for node in nodes:
                settings = ConfigRecord({**config, msg.SERVER_ROUND: round})
                content = RecordDict({msg.CONFIG: settings, msg.ARRAYS: self._weights})
                messages.append(Message(content, node, kind, group_id=str(round)))
        if kind == msg.END_TASK and self._orthogonal is not None:
            bases = arrays_to_record(self._orthogonal.bases)
            for message in messages:
                if message.metadata.dst_node_id in self._took_part:
                    message.content[msg.BASES] = bases
        self._sent += sum(payload_bytes(message.content) for message in messages)
        return messages

    def end_task(self, round: int, replies: Sequence[Message]) -> dict[str, float]:
        """Protect the span of the clients' sketches; return each layer's protected share."""
        if self._orthogonal is None:
            return {}
        sent = []
        for reply in (reply for reply in replies if reply.metadata.src_node_id in self._took_part):
            try:
                check_reply(msg.sender(reply), reply, (msg.NUM_EXAMPLES,))
                upload = opened(reply, self._stages, upload_kinds)
                self._orthogonal.check_sketches(upload.arrays)
            except InvalidUpload as misfit:
                raise refusal(misfit, msg.sender(reply), round) from None
            sent.append(upload)
        self._orthogonal.end_task([one.arrays for one in sent], [one.samples for one in sent])
        return self._orthogonal.figures()

    def fuse(self, round: int, replies: Sequence[Message]) -> None:
        """Average any uploads in client order by Flower's strategy.

        Strategies such as FedAdam read the last average from the next messages. FedAvgM keeps its own; its
        steps are linear, so its momentum stays within the forbidden directions.
        """
        self._took_part = frozenset(reply.metadata.src_node_id for reply in replies)
        if not replies:
            return
        for client, misfit in self.misfits(replies).items():
            raise refusal(misfit, client, round)
        for reply in replies:
            reply.content[msg.ARRAYS] = arrays_to_record(self._opened[id(reply)][1].arrays)
        self._opened.clear()
        weights, _ = self._strategy.aggregate_train(round, list(replies))
        if weights is not None and self._orthogonal is not None:
            before, after = record_to_arrays(self._weights), record_to_arrays(weights)
            weights = arrays_to_record(self._orthogonal.confined(before, after, self._task))
        if weights is not None:
            self._weights = in_precision_of(self._weights, weights)

    def misfits(self, replies: Sequence[Message]) -> dict[int, InvalidUpload]:
        """Open uploads; return reasons of misfits by client."""
        found: dict[int, InvalidUpload] = {}
        model = record_to_arrays(self._weights)
        for reply in replies:
            if id(reply) in self._opened:
                continue
            try:
                upload = opened(reply, self._stages, self._half.kinds_of)
                _check_names(upload.arrays, model)
                for name, values in upload.arrays.items():
                    check_weight(name, values, model[name])
                self._opened[id(reply)] = reply, upload
            except InvalidUpload as misfit:
                found[msg.sender(reply)] = misfit
        return found

    def sent_bytes(self) -> int:
        sent, self._sent = self._sent, 0
        return sent

    def state(self) -> dict[str, np.ndarray]:
        arrays = add_prefix(STRATEGY_PREFIX, strategy_state(self._strategy)) | add_prefix(
            WEIGHTS_PREFIX, record_to_arrays(self._weights)
        )
        return arrays | add_prefix(ORTHOGONAL_PREFIX, self._orthogonal.state() if self._orthogonal else {})

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        weights = strip_prefix(WEIGHTS_PREFIX, arrays)
        # Flower's strategies rely on the order of a model's tensors, which a file does not keep.
        self._weights = arrays_to_record({name: weights[name] for name in self._weights})
        restore_strategy(self._strategy, strip_prefix(STRATEGY_PREFIX, arrays))
        if self._orthogonal is not None:
            self._orthogonal.restore(strip_prefix(ORTHOGONAL_PREFIX, arrays))


def _check_names(arrays: Arrays, model: Arrays) -> None:
    if list(arrays) == list(model):
        return
    missing = [name for name in model if name not in arrays]
    strange = [name for name in arrays if name not in model]
    told = f"array {missing[0]} is missing" if missing else f"the model has no array {strange[0]}"
    raise InvalidUpload(told if missing or strange else "its arrays are in another order than the model's")


def strategy_state(strategy: Strategy) -> dict[str, np.ndarray]:
    """Return a Flower strategy's arrays: attributes that are a record, or a dict or list of arrays."""
    arrays: dict[str, np.ndarray] = {}
    for attribute, value in vars(strategy).items():
        if isinstance(value, ArrayRecord):
            kind, table = "record", record_to_arrays(value)
        elif isinstance(value, dict):
            kind, table = "dict", value
        elif isinstance(value, list):
            kind, table = "list", {str(position): item for position, item in enumerate(value)}
        else:
            continue
        # The position is kept because Flower's strategies pair arrays up by their order; a file keeps none.
        if all(isinstance(item, np.ndarray) for item in table.values()):
            for position, (name, item) in enumerate(table.items()):
                arrays[f"{kind}|{attribute}|{position:05d}|{name}"] = item
    return arrays


def restore_strategy(strategy: Strategy, arrays: Mapping[str, np.ndarray]) -> None:
    """Restore a `strategy_state`."""
    groups: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for key in sorted(arrays):
        kind, attribute, _, name = key.split("|", 3)
        groups.setdefault((kind, attribute), {})[name] = arrays[key]
    for (kind, attribute), items in groups.items():
        make: Any = {"record": arrays_to_record, "list": lambda items: list(items.values())}.get(kind, dict)
        setattr(strategy, attribute, make(items))


def in_precision_of(model: ArrayRecord, fused: ArrayRecord) -> ArrayRecord:
    """Return fused weights in the model's types; some strategies compute in float64."""
    arrays = {}
    for name, array in fused.items():
        wanted = np.dtype(model[name].dtype)
        values = np.rint(array.numpy()) if np.issubdtype(wanted, np.integer) else array.numpy()
        arrays[name] = np.asarray(values, dtype=wanted)
    return arrays_to_record(arrays)
