"""How long clients' jobs take on the simulated clock, by what they were handed and what they sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from flwr.app import Message, RecordDict

from fedkd.clients.own_samples import number_kept_apart, share_kept_apart
from fedkd.federation import messages as msg
from fedkd.federation.arrays import from_record, payload_bytes
from fedkd.federation.messages import metrics_of
from fedkd.fusion.local_objective import trained_epochs
from fedkd.fusion.strategy import teaches_targets
from fedkd.plan.clock import VirtualClock
from fedkd.plan.plan import Plan

HANDED = "clock/handed"
"""Name of what is kept in checkpoints: a row `client, bytes, steps` for whoever was handed something."""


class Handed(NamedTuple):
    """What a client was handed for a job."""

    size: int = 0
    """Bytes, weights and guidance alike."""
    steps: int = 0
    """Steps that it takes to learn them."""


class JobTime:
    """Counts how long a job takes: download, work, upload.

    Guidance belongs to the job that begins with it, even if it came with an evaluation before. So how often a
    run evaluates does not change its time. What only an evaluation needs takes none.
    """

    def __init__(self, plan: Plan, clock: VirtualClock, client_of: Callable[[Message], int]) -> None:
        self._plan = plan
        self._clock = clock
        self._client_of = client_of
        self._kept_apart = share_kept_apart(plan) or 0.0
        self._handed: dict[int, Handed] = {}

    def hand(self, messages: Iterable[Message]) -> None:
        """Take down guidance that goes along with an evaluation or the end of a task."""
        for message in messages:
            if msg.GUIDANCE in message.content:
                self._add(self._client_of(message), RecordDict({msg.GUIDANCE: message.content[msg.GUIDANCE]}))

    def begin(self, message: Message) -> Handed:
        """Return all that a client was handed for the job that a message has it do."""
        client = self._client_of(message)
        self._add(client, message.content)
        return self._handed.pop(client)

    def before_work(self, client: int, handed: Handed) -> float:
        """Return how long it takes until a client has what it was handed."""
        return self._clock.way(client, handed.size)

    def after_work(self, client: int, size: int) -> float:
        """Return how long an upload of so many bytes takes."""
        return self._clock.way(client, size)

    def work(self, client: int, job: int, handed: Handed, samples: int) -> float:
        """Return how long a client works on a job.

        Args:
            client: Client index.
            job: The round whose draws it takes.
            handed: What it has to learn besides its own samples.
            samples: Its training samples, those that it keeps apart included.
        """
        training = self._plan.scenario.training
        epochs = trained_epochs(self._plan.strategy, training.local_epochs)
        samples -= number_kept_apart(samples, self._kept_apart)
        steps = epochs * -(-samples // training.batch_size) + handed.steps
        return self._clock.work(client, job, steps)

    def of_round(self, round: int, sent: Iterable[Message], replies: Mapping[int, Message]) -> float:
        """Return how long a round takes whose server waits for all: as long as its slowest client.

        Clients that failed are waited for no longer.
        """
        longest = 0.0
        for message in sent:
            client, handed = self._client_of(message), self.begin(message)
            if client in replies:
                reply = replies[client]
                samples = int(metrics_of(reply)[msg.NUM_EXAMPLES])
                taken = self.before_work(client, handed) + self.work(client, round, handed, samples)
                longest = max(longest, taken + self.after_work(client, payload_bytes(reply.content)))
        return longest

    def _add(self, client: int, content: RecordDict) -> None:
        before = self._handed.get(client, Handed())
        size, steps = payload_bytes(content), self._steps(content)
        self._handed[client] = Handed(before.size + size, before.steps + steps)

    def _steps(self, content: RecordDict) -> int:
        """Return the steps of distilling what a message brings, on the clients that distil."""
        fusion, training = self._plan.scenario.fusion, self._plan.scenario.training
        if not teaches_targets(self._plan.strategy):
            return 0
        rows = [
            self._plan.strategy.taught_samples(from_record(content.array_records[name]))
            for name in (msg.GUIDANCE, msg.MISSED)
            if name in content
        ]
        batch = fusion.distill_batch_size or training.batch_size
        return sum(fusion.distill_epochs * -(-length // batch) for length in rows)

    # State --------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Return what a later round depends on."""
        rows = [(client, *handed) for client, handed in sorted(self._handed.items())]
        return {HANDED: np.array(rows, dtype=np.int64).reshape(-1, 3)}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from a `state`."""
        self._handed = {int(client): Handed(int(size), int(steps)) for client, size, steps in arrays[HANDED]}
