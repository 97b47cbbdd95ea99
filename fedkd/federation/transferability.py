"""The transferability map: copies of clients learn from one other client each, before fusion."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from fedkd.clients import LOGITS_KEY, TRIAL_UPLOAD_KINDS, decode_upload, upload_stages
from fedkd.errors import UserError
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record, payload_bytes, record_to_arrays
from fedkd.federation.run_control import RunControl
from fedkd.fusion import (
    INITIAL_PREDICTION,
    complement_by_class,
    complementary_transfer_rate,
    predict_gains,
    softmax,
)
from fedkd.scenario import Scenario, Transferability
from fedkd.tracking import TransferMap
from fedkd.training import one_blas_thread

PHASE = "transferability"

Send = Callable[[Sequence[Message]], "dict[int, Message]"]
"""Sends messages and returns the replies by client, in client order."""


class TransferProbe:
    """Measures each client's gain from each other; labels `[M]` may be unknown."""

    def __init__(self, scenario: Scenario, wanted: Transferability, labels: np.ndarray | None = None) -> None:
        self.rounds, self._epochs = frozenset(wanted.rounds), wanted.epochs
        self._labels, self._stages = labels, upload_stages(scenario.fusion)

    def measure(
        self, round: int, node_of_client: Mapping[int, int], send: Send
    ) -> tuple[TransferMap | None, int]:
        """Return a round's map, None without any reply, and the bytes of all messages.

        A client without predictions is left out. A client lost while it learns has NaN as a receiver.
        """
        if not node_of_client:
            return None, 0
        settings = ConfigRecord({msg.SERVER_ROUND: round, msg.EPOCHS: self._epochs})
        question = RecordDict({msg.CONFIG: settings})
        shown = send([Message(question, node, msg.SHOW) for node in node_of_client.values()])
        if not shown:
            return None, 0
        uploads = [record_to_arrays(reply.content.array_records[msg.ARRAYS]) for reply in shown.values()]
        knowledge = [decode_upload(self._stages, arrays, TRIAL_UPLOAD_KINDS) for arrays in uploads]
        logits = np.stack([arrays[LOGITS_KEY] for arrays in knowledge])
        probabilities = softmax(logits)
        # One record for all, sent once.
        lesson = RecordDict(
            {msg.CONFIG: settings, msg.ARRAYS: arrays_to_record({msg.PROBABILITIES: probabilities})}
        )
        tried = send([Message(lesson, node_of_client[client], msg.TRY_OUT) for client in shown])
        gains, answers = _results(list(shown), tried, logits.shape[1])
        with one_blas_thread():
            guesses = predict_gains(
                logits, np.stack([arrays[INITIAL_PREDICTION] for arrays in knowledge]), self._labels
            )
        by_class = rate = None
        if self._labels is not None:
            right = probabilities.argmax(axis=-1) == self._labels
            by_class = complement_by_class(right, self._labels, logits.shape[-1])
            rate = complementary_transfer_rate(right, answers == self._labels)
            rate[[client not in tried for client in shown]] = np.nan
        found = TransferMap(round, tuple(shown), gains[..., 0], gains[..., 1], guesses, by_class, rate)
        replies = sum(payload_bytes(reply.content) for reply in (*shown.values(), *tried.values()))
        return found, replies + len(shown) * probabilities.nbytes


def _results(
    clients: Sequence[int], tried: Mapping[int, Message], samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return gains `[N, N, 2]` and answers `[N, N, M]` by receiver; gains of lost clients are NaN."""
    n = len(clients)
    gains, answers = np.full((n, n, 2), np.nan), np.full((n, n, samples), -1, dtype=np.int64)
    for row, client in enumerate(clients):
        if client in tried:
            arrays = record_to_arrays(tried[client].content.array_records[msg.ARRAYS])
            gains[row], answers[row] = arrays[msg.GAINS], arrays[msg.ANSWERS]
    return gains, answers


def transfer_probe(
    scenario: Scenario, control: RunControl, labels: np.ndarray | None
) -> TransferProbe | None:
    """Return the map's probe, None if it is not wanted; raise `UserError` for deployed nodes."""
    wanted = None if scenario.measure is None else scenario.measure.transferability
    if wanted is not None and control.deployment is not None:
        raise UserError(
            "is for simulations only: clients send predictions that their strategy may not exchange",
            key="measure.transferability",
        )
    return None if wanted is None else TransferProbe(scenario, wanted, labels)
