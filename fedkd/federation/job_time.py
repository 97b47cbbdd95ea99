"""Durations of clients' jobs on the simulated clock, from the bytes and steps of each."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from flwr.app import Message, RecordDict

from fedkd.clients import count_held_out, network_holdout_share
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import payload_bytes, record_to_arrays
from fedkd.federation.messages.records import metrics_of
from fedkd.fusion import distils_targets, trained_epochs
from fedkd.plan import Plan, VirtualClock

HANDED = "clock/handed"
"""Name of the array in checkpoints: a row `client, bytes, steps` of each client."""


class Handed(NamedTuple):
    """Weights and guidance that a client received for a job: bytes, and steps of distilling them."""

    size: int = 0
    steps: int = 0


class JobTime:
    """Durations of jobs: download, work, upload.

    Guidance belongs to the job that begins with it, and evaluation takes no time. So the frequency of
    evaluations does not change simulated time.
    """

    def __init__(self, plan: Plan, clock: VirtualClock, client_of: Callable[[Message], int]) -> None:
        self._plan, self._clock, self._client_of = plan, clock, client_of
        self.transfer = clock.way  # seconds of a client's download or upload of so many bytes
        self._kept_apart = network_holdout_share(plan) or 0.0
        self._handed: dict[int, Handed] = {}

    def hand(self, messages: Iterable[Message]) -> None:
        """Count guidance that comes with an evaluation or the end of a task."""
        for message in messages:
            if msg.GUIDANCE in message.content:
                self._add(self._client_of(message), RecordDict({msg.GUIDANCE: message.content[msg.GUIDANCE]}))

    def begin(self, message: Message) -> Handed:
        """Return a client's downloads for the job of a message."""
        client = self._client_of(message)
        self._add(client, message.content)
        return self._handed.pop(client)

    def work(self, client: int, job: int, handed: Handed, samples: int) -> float:
        """Return the seconds of work on a job; `job` is the round of its draws, `samples` the client's."""
        training = self._plan.scenario.training
        epochs = trained_epochs(self._plan.strategy, training.local_epochs)
        samples -= count_held_out(samples, self._kept_apart)
        steps = epochs * -(-samples // training.batch_size) + handed.steps
        return self._clock.work(client, job, steps)

    def of_round(self, round: int, sent: Iterable[Message], replies: Mapping[int, Message]) -> float:
        """Return the seconds of a synchronous round: those of its slowest successful client."""
        longest = 0.0
        for message in sent:
            client, handed = self._client_of(message), self.begin(message)
            if client in replies:
                reply = replies[client]
                samples = int(metrics_of(reply)[msg.NUM_EXAMPLES])
                taken = self.transfer(client, handed.size) + self.work(client, round, handed, samples)
                longest = max(longest, taken + self.transfer(client, payload_bytes(reply.content)))
        return longest

    def _add(self, client: int, content: RecordDict) -> None:
        before = self._handed.get(client, Handed())
        size, steps = payload_bytes(content), self._steps(content)
        self._handed[client] = Handed(before.size + size, before.steps + steps)

    def _steps(self, content: RecordDict) -> int:
        fusion, strategy = self._plan.scenario.fusion, self._plan.strategy
        if not distils_targets(strategy):
            return 0
        batch = fusion.distill_batch_size or self._plan.scenario.training.batch_size
        records = (content.array_records.get(name) for name in (msg.GUIDANCE, msg.MISSED))
        rows = [strategy.taught_samples(record_to_arrays(record)) for record in records if record is not None]
        return sum(fusion.distill_epochs * -(-length // batch) for length in rows)

    def state(self) -> dict[str, np.ndarray]:
        rows = [(client, *handed) for client, handed in sorted(self._handed.items())]
        return {HANDED: np.array(rows, dtype=np.int64).reshape(-1, 3)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._handed = {int(client): Handed(int(size), int(steps)) for client, size, steps in arrays[HANDED]}
