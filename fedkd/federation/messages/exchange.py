"""One phase of a round: messages out, replies in, both counted."""

import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict

from fedkd.clients import STATES_PER_BATCH
from fedkd.errors import RunFailed, TrainingDiverged, UserError, described
from fedkd.federation.job_time import JobTime
from fedkd.federation.measurements import Measurements
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record, payload_bytes, record_to_arrays
from fedkd.federation.messages.messenger import Messenger
from fedkd.federation.messages.server_gate import sift
from fedkd.federation.server_strategy import ServerStrategy
from fedkd.plan import Plan
from fedkd.plugins import contain_plugin
from fedkd.storage import Arrays
from fedkd.tracking import Recorder, Totals, peak_memory_mb


class Exchange:
    """Send a strategy's messages, and return the replies that pass the gate.

    `changed` are the clients that have changed since the last checkpoint, `totals` the costs so far.
    """

    def __init__(
        self,
        plan: Plan,
        messenger: Messenger,
        strategy: ServerStrategy,
        recorder: Recorder,
        measurements: Measurements,
        job_time: JobTime | None,
    ) -> None:
        self._plan, self._messenger, self._strategy = plan, messenger, strategy
        self._recorder, self._measurements, self._job_time = recorder, measurements, job_time
        self._node_of_client = messenger.node_of_client
        self.changed: set[int] = set()
        self.totals = Totals()

    def write(self, round: int, kind: str, clients: Iterable[int], **config: bool) -> list[Message]:
        """Return the strategy's messages of a kind to some clients, in client order."""
        nodes = [self._node_of_client[client] for client in sorted(clients)]
        with self.charged_to_strategy(round):
            return self._strategy.messages(kind, round, ConfigRecord({**config}), nodes)

    def send(self, round: int, phase: str, sent: Sequence[Message]) -> dict[int, Message]:
        """Send the messages of a phase, record their cost, and return the replies (see `Messenger`)."""
        started = time.perf_counter()
        answers = self._messenger.send(round, phase, sent)
        replies = self.admitted(round, phase, answers)
        # A client has done its work even if its reply is refused.
        self.changed.update(answers.keys() - replies.keys())
        answered = {self._node_of_client[client] for client in answers}
        self._strategy.take_back([m for m in sent if m.metadata.dst_node_id not in answered])
        if self._job_time is not None and phase in ("evaluate", "end task"):
            self._job_time.hand([m for m in sent if m.metadata.dst_node_id in answered])
        up = 0  # without a server it is counted by links, once it is fused
        if self._plan.graph is None:
            up = sum(payload_bytes(reply.content) for reply in replies.values())
        cost = self.account(bytes_up=up)
        if phase == "evaluate":
            cost = {"evaluation_bytes": _evaluation_bytes(sent)}
            self.add(**cost)
        self.record_time(round, phase, started, clients=len(sent), **cost, memory_mb=peak_memory_mb())
        return replies

    def probe(self, round: int, phase: str, sent: Sequence[Message]) -> dict[int, Message]:
        """Send messages of a measurement, free of charge; return the replies."""
        return self.admitted(round, phase, self._messenger.send(round, phase, sent))

    def admitted(self, round: int, phase: str, answers: Mapping[int, Message]) -> dict[int, Message]:
        """Return the replies that pass the gate, in client order; a refusal may raise `RunFailed`."""
        uploads = self._strategy.misfits if phase == "train" else None
        sound, misfits = sift(answers, self._measurements.figures(phase), uploads)
        if misfits:
            self._messenger.refuse(round, phase, misfits, len(answers))
        return sound

    @contextmanager
    def charged_to_strategy(self, round: int) -> Iterator[None]:
        """Turn the errors of the strategy, which may be a plug-in, into a `RunFailed` with its name."""
        try:
            # The checks of the result report numbers out of range, not NumPy.
            with contain_plugin(), np.errstate(all="ignore"):
                yield
        except (UserError, RunFailed):
            raise
        except TrainingDiverged as error:
            raise RunFailed(str(error), round=round, diverged=True) from error
        except Exception as error:
            raise RunFailed(
                f"strategy '{self._plan.scenario.fusion.strategy}' raised {described(error)}",
                round=round,
                details=traceback.format_exc(),
            ) from error

    def account(self, **up: int) -> dict[str, int]:
        """Add the clients' and the method's bytes to the totals; return both for a timing."""
        cost = {**up, "bytes_down": self._strategy.sent_bytes()}
        self.add(**cost)
        return cost

    def add(self, **more: float) -> None:
        sums: dict[str, Any] = {name: getattr(self.totals, name) + value for name, value in more.items()}
        self.totals = replace(self.totals, **sums)

    def record_time(self, round: int, phase: str, started: float, **more: Any) -> None:
        """Record the seconds of a phase since `started` (`time.perf_counter`)."""
        self._recorder.timing(round=round, phase=phase, seconds=time.perf_counter() - started, **more)

    def fetch_states(self, round: int) -> Iterator[dict[int, Arrays]]:
        """Yield the states of changed clients, in client order, portion by portion."""
        for portion in _portions(sorted(self.changed)):
            sent = [Message(RecordDict(), self._node_of_client[c], msg.EXPORT_STATE) for c in portion]
            yield {
                client: record_to_arrays(reply.content.array_records[msg.STATE])
                for client, reply in self._messenger.send(round, "save", sent).items()
            }

    def hand_back(self, round: int, states: Mapping[int, Arrays]) -> None:
        """Restore the clients' states, reading those of one portion at a time."""
        for portion in _portions(sorted(states)):
            contents = {
                client: RecordDict({msg.STATE: arrays_to_record(states[client])}) for client in portion
            }
            sent = [Message(c, self._node_of_client[n], msg.IMPORT_STATE) for n, c in contents.items()]
            self._messenger.send(round, "restore", sent)


def _portions(clients: Sequence[int]) -> list[Sequence[int]]:
    return [clients[start : start + STATES_PER_BATCH] for start in range(0, len(clients), STATES_PER_BATCH)]


def _evaluation_bytes(sent: Sequence[Message]) -> int:
    contents = [message.content for message in sent]
    own = [RecordDict({msg.GUIDANCE: c[msg.GUIDANCE]}) for c in contents if msg.GUIDANCE in c]
    return sum(map(payload_bytes, contents)) - sum(map(payload_bytes, own))
