"""The transferability map: copies of clients learn from one other client each, and nobody is changed by it.

It is measured between a round's training and its guidance, by messages of its own. Predictions leave clients
as an upload would, past all stages, whatever the strategy exchanges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from fedkd.clients.trials import KINDS, LOGITS
from fedkd.clients.upload import arrive, upload_stages
from fedkd.errors import UserError
from fedkd.federation import messages as msg
from fedkd.federation.arrays import from_record, payload_bytes, to_record
from fedkd.federation.run_control import RunControl
from fedkd.fusion.blas import one_blas_thread
from fedkd.fusion.complement import complement_by_class, transfer_rate
from fedkd.fusion.probabilities import softmax
from fedkd.fusion.shift import START
from fedkd.fusion.transferability import predicted
from fedkd.scenario.schema import Scenario, Transferability
from fedkd.tracking.transferability import TransferMap

PHASE = "transferability"

Send = Callable[[Sequence[Message]], "dict[int, Message]"]
"""Sends messages and returns the replies by client, in client order."""


class TransferProbe:
    """Measures who would gain how much from whom, in the rounds of a scenario that say so.

    Args:
        scenario: What is simulated.
        wanted: Its `measure.transferability`.
        labels: True labels of the transfer set `[M]`; None: they are not known.
    """

    def __init__(self, scenario: Scenario, wanted: Transferability, labels: np.ndarray | None = None) -> None:
        self._wanted = wanted
        self._labels = labels
        self._stages = upload_stages(scenario.fusion.upload_dtype)

    def is_due(self, round: int) -> bool:
        """Return whether the map is measured in a round."""
        return round in self._wanted.rounds

    def measure(self, round: int, nodes: Sequence[int], send: Send) -> tuple[TransferMap | None, int]:
        """Return the map of a round, and the bytes of all messages.

        Args:
            round: 1-based.
            nodes: Of the clients that have trained in it; without any there is no map.
            send: Has messages answered.
        """
        if not nodes:
            return None, 0
        settings = ConfigRecord({msg.SERVER_ROUND: round, msg.EPOCHS: self._wanted.epochs})
        asked = [Message(RecordDict({msg.CONFIG: settings}), node, msg.SHOW) for node in nodes]
        shown = send(asked)
        knowledge = [self._arrived(reply) for reply in shown.values()]
        logits = np.stack([arrays[LOGITS] for arrays in knowledge])
        probabilities = softmax(logits)
        record = to_record({msg.PROBABILITIES: probabilities})  # one for all, so that it travels once
        tried = send(
            [
                Message(RecordDict({msg.CONFIG: settings, msg.ARRAYS: record}), node, msg.TRY_OUT)
                for node in nodes
            ]
        )
        results = [from_record(reply.content.array_records[msg.ARRAYS]) for reply in tried.values()]
        gains = np.stack([arrays[msg.GAINS] for arrays in results])
        with one_blas_thread():
            guesses = predicted(logits, np.stack([arrays[START] for arrays in knowledge]), self._labels)
        by_class = rate = None
        if self._labels is not None:
            right = probabilities.argmax(axis=-1) == self._labels
            taught = np.stack([arrays[msg.ANSWERS] for arrays in results]) == self._labels
            by_class = complement_by_class(right, self._labels, logits.shape[-1])
            rate = transfer_rate(right, taught)
        found = TransferMap(round, tuple(shown), gains[..., 0], gains[..., 1], guesses, by_class, rate)
        replies = sum(payload_bytes(reply.content) for reply in (*shown.values(), *tried.values()))
        return found, replies + len(nodes) * probabilities.nbytes

    def _arrived(self, reply: Message) -> dict[str, np.ndarray]:
        return arrive(self._stages, from_record(reply.content.array_records[msg.ARRAYS]), KINDS)


def transfer_probe(
    scenario: Scenario, control: RunControl, labels: np.ndarray | None
) -> TransferProbe | None:
    """Return what measures the map; None: the scenario wants none.

    Args:
        scenario: What is simulated.
        control: Of the run.
        labels: True labels of the transfer set `[M]`; None: they are not known.

    Raises:
        UserError: Clients are deployed nodes, which tell nobody what their strategy does not exchange.
    """
    wanted = None if scenario.measure is None else scenario.measure.transferability
    if wanted is None:
        return None
    if control.deployment is not None:
        raise UserError(
            "is for simulations: it has clients show predictions that their strategy may not exchange, and"
            " learn from all others",
            key="measure.transferability",
        )
    return TransferProbe(scenario, wanted, labels)
