"""Asynchronous rounds: each ends after K uploads, on a simulated clock.

A round is a version of the server's state. The seed and the bytes sent decide when a job ends, so a run is
the same on every machine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedkd.clients import SPLITS
from fedkd.federation.apps.knowledge_fusion import KnowledgeFusion
from fedkd.federation.job_time import Handed
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.arrays import arrays_to_record, record_to_arrays
from fedkd.federation.messages.records import metrics_of
from fedkd.federation.rounds import Rounds
from fedkd.federation.run_control import RunControl
from fedkd.plan import Plan
from fedkd.server import ClientJob, JobsInFlight
from fedkd.storage import Arrays, add_prefix, group_by_number, strip_prefix
from fedkd.tracking import peak_memory_mb

SHARED, WAITING, DONE = "shared/", "waiting/", "done/"


@dataclass(frozen=True, eq=False)
class Reply:
    """A client's reply to a job: upload, metrics, and accuracy if it is at chance."""

    arrays: Mapping[str, np.ndarray]
    figures: Mapping[str, float]
    chance: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, reply: Message) -> Reply:
        """Return a message's content, with copies of arrays: their memory may be reused."""
        content = reply.content
        told: Any = content.config_records[msg.AT_CHANCE] if msg.AT_CHANCE in content else {}
        sent = record_to_arrays(content.array_records[msg.ARRAYS])
        return cls(
            {name: np.array(values) for name, values in sent.items()},
            metrics_of(reply),
            {name: float(value) for name, value in told.items()},
        )

    @property
    def size(self) -> int:
        return sum(values.nbytes for values in self.arrays.values())

    @property
    def samples(self) -> int:
        return int(self.figures[msg.NUM_EXAMPLES])

    def message(self, client: int, node: int) -> Message:
        figures: dict[str, Any] = {**self.figures, msg.NUM_EXAMPLES: self.samples}
        records: Any = {msg.IDENTITY: msg.identity(client), msg.ARRAYS: arrays_to_record(self.arrays)}
        content = RecordDict({**records, msg.METRICS: MetricRecord(figures)})
        if self.chance:
            content[msg.AT_CHANCE] = ConfigRecord(dict(self.chance))
        return Message(content, reply_to=Message(RecordDict(), node, msg.TRAIN))

    def state(self) -> dict[str, np.ndarray]:
        arrays = add_prefix("arrays/", self.arrays)
        for name, table in (("figures/", self.figures), ("chance/", self.chance)):
            arrays |= add_prefix(
                name, {key: np.array(value, dtype=np.float64) for key, value in table.items()}
            )
        return arrays

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray]) -> Reply:
        tables = (strip_prefix(name, arrays) for name in ("figures/", "chance/"))
        figures, chance = ({key: float(value) for key, value in own.items()} for own in tables)
        return cls(strip_prefix("arrays/", arrays), figures, chance)


class HeldMessages:
    """Messages that are not sent yet, and replies that have not arrived, by client."""

    def __init__(self) -> None:
        self.waiting, self.done = dict[int, Message](), dict[int, Reply]()

    def state(self) -> dict[str, np.ndarray]:
        """Return them as arrays; a record of several messages is there once."""
        arrays: dict[str, np.ndarray] = {}
        place_of: dict[int, int] = {}
        for client, message in sorted(self.waiting.items()):
            own = f"{WAITING}{client}/"
            config = message.content.config_records[msg.CONFIG]
            arrays |= add_prefix(f"{own}config/", {name: np.array(value) for name, value in config.items()})
            for name, record in message.content.array_records.items():
                if id(record) not in place_of:
                    place_of[id(record)] = len(place_of)
                    arrays |= add_prefix(f"{SHARED}{place_of[id(record)]}/", record_to_arrays(record))
                arrays[f"{own}records/{name}"] = np.array(place_of[id(record)], dtype=np.int64)
        for client, reply in sorted(self.done.items()):
            arrays |= add_prefix(f"{DONE}{client}/", reply.state())
        return arrays

    def restore(self, arrays: Mapping[str, np.ndarray], node_of_client: Mapping[int, int]) -> None:
        records = {
            place: arrays_to_record(own)
            for place, own in group_by_number(strip_prefix(SHARED, arrays)).items()
        }
        self.waiting = {}
        for client, own in group_by_number(strip_prefix(WAITING, arrays)).items():
            config = {name: value.item() for name, value in strip_prefix("config/", own).items()}
            content = RecordDict({msg.CONFIG: ConfigRecord(config)})
            for name, place in strip_prefix("records/", own).items():
                content[name] = records[int(place)]
            group = str(config[msg.SERVER_ROUND])
            self.waiting[client] = Message(content, node_of_client[client], msg.TRAIN, group_id=group)
        done = group_by_number(strip_prefix(DONE, arrays))
        self.done = {client: Reply.restored(own) for client, own in done.items()}


FLIGHTS = "flights/"
MEASURED = "measured"
LASTING = ("accuracy_local", "accuracy_global", "loss_local", "loss_global")
"""Metrics that stay true until a client changes; the others are about a round's guidance."""

Arrived = Sequence[tuple[ClientJob, Reply]]


class AsynchronousRounds(Rounds):
    """Run rounds that end after K uploads, of any clients.

    A client begins its next job after the fusion of its upload, or at once if every message brings the model.
    It is evaluated when it receives its answer, and its figures stand until the next answer. If every message
    brings the model, all clients are evaluated with the newest.
    """

    def __init__(self, plan: Plan, grid: Grid, strategy: KnowledgeFusion, control: RunControl) -> None:
        super().__init__(plan, grid, strategy, control)
        settings, clients = plan.scenario.asynchronous, plan.scenario.data.clients
        assert settings is not None and self._job_time is not None
        self._time, self._fusing, self._messages = self._job_time, strategy, HeldMessages()
        self._buffer = settings.buffer
        self._flights = JobsInFlight(clients, settings.concurrency or clients, plan.scenario.seed)
        self._brings_model = plan.capabilities.brings_model
        self._arrived: dict[int, Reply] = {}  # each client's last in the present round
        self._lasting = (*LASTING, *(f"{name}_{split}" for split in SPLITS for name in plan.metrics))
        self._measured = np.full((clients, len(self._lasting)), nan)

    def _train(self, round: int) -> float | None:
        self._depart(round)
        arrived: list[tuple[ClientJob, Reply]] = []
        while len(arrived) < self._buffer:
            job = self._next(round)
            self._flights.land(job.client, hold=not self._brings_model)
            self._exchange.totals = replace(self._exchange.totals, virtual_seconds=job.over)
            arrived.append((job, self._messages.done.pop(job.client)))
            # Arrivals come before departures of the same instant.
            if self._brings_model and len(arrived) < self._buffer:
                following = self._next(round) if self._flights.jobs else None
                if following is None or following.over > job.over:
                    self._depart(round)
        self._arrived = {job.client: reply for job, reply in sorted(arrived, key=_client)}
        replies = {client: self._message(client, reply) for client, reply in self._arrived.items()}
        self._fuse_arrived(round, arrived)
        self._flights.release()
        return self._record_training(round, replies)

    def _depart(self, round: int) -> None:
        """Write the messages of all new jobs; they are sent once their replies are needed."""
        clients = self._flights.departing()
        if not clients:
            return
        tells = {msg.TELL_TRAINED: self._brings_model}
        for message in self._exchange.write(round, msg.TRAIN, clients, **tells):
            client = self._messenger.client_of(message)
            key, handed = self._flights.key(client, round), self._time.begin(message)
            message.content.config_records[msg.CONFIG][msg.SERVER_ROUND] = key
            least = self._time.transfer(client, handed.size) + self._time.work(client, key, handed, 0)
            start = self._exchange.totals.virtual_seconds
            self._flights.depart(ClientJob(client, round, key, start, least, handed.size, handed.steps))
            self._messages.waiting[client] = message

    def _next(self, round: int) -> ClientJob:
        """Return the next job to end, once all candidates are done."""
        if (job := self._flights.first()) is None:
            self._do_all(round)
            job = self._flights.first()
        assert job is not None
        return job

    def _do_all(self, round: int) -> None:
        started = time.perf_counter()
        waiting, self._messages.waiting = self._messages.waiting, {}
        answers = self._messenger.send(round, "train", [waiting[client] for client in sorted(waiting)])
        replies = self._exchange.admitted(round, "train", answers)
        self._exchange.changed.update(replies)
        for client, message in replies.items():
            job, reply = self._flights.jobs[client], Reply.of(message)
            handed = Handed(job.size, job.steps)
            before = self._time.transfer(client, handed.size)
            working = before + self._time.work(client, job.key, handed, reply.samples)
            over = job.start + (working + self._time.transfer(client, reply.size))
            self._flights.done(client, working, over)
            self._messages.done[client] = reply
        self._exchange.record_time(round, "train", started, clients=len(replies), memory_mb=peak_memory_mb())

    def _fuse_arrived(self, round: int, arrived: Arrived) -> None:
        """Fuse the arrived uploads; a client's second upload is fused by another call."""
        started = time.perf_counter()
        self._observer.phase(round, "fuse", 0, 1)
        awaited = len(arrived)
        for layer in _layers(arrived):
            awaited -= len(layer)
            own = [self._message(job.client, reply) for job, reply in layer]
            begun = {job.client: job.began for job, _ in layer}
            with self._exchange.charged_to_strategy(round):
                self._fusing.fuse(round, own, begun=begun, awaited=awaited)
        cost = self._exchange.account(bytes_up=sum(reply.size for _, reply in arrived))
        self._exchange.record_time(round, "fuse", started, **cost)

    def _message(self, client: int, reply: Reply) -> Message:
        return reply.message(client, self._node_of_client[client])

    def _begin(self) -> None:
        """Measure clients before any training: these figures stand until they are answered."""
        if not self._brings_model:
            self._measure(0, self._evaluated)
            self._record_failures(0)

    def _evaluate_if_due(self, round: int) -> dict[str, float]:
        """Evaluate answered clients in any case: they change before the next evaluation."""
        if not self._plan.evaluates(round) and not self._brings_model:
            self._measure(round, self._answered())
        return super()._evaluate_if_due(round)

    def _evaluate(self, round: int) -> dict[str, float]:
        replies = self._measure(round, self._evaluated if self._brings_model else self._answered())
        rows = {client: metrics_of(reply) for client, reply in replies.items()}
        if self._brings_model:
            for client, row in rows.items():
                self._set_two_moments(row, self._arrived[client].figures if client in self._arrived else {})
        else:
            rows = {client: rows.get(client) or self._as_before(client) for client in self._evaluated}
        return self._measurements.measured(round, rows) | self._measurements.choices(round, replies)

    def _answered(self) -> list[int]:
        return [client for client in self._evaluated if client in self._arrived]

    def _measure(self, round: int, clients: Sequence[int]) -> dict[int, Message]:
        replies = self._evaluation(round, clients) if clients else {}
        for client, reply in replies.items():
            self._measured[client] = [metrics_of(reply)[name] for name in self._lasting]
        return replies

    def _as_before(self, client: int) -> dict[str, float]:
        """Return the figures of a client without an answer since its last evaluation."""
        row = dict(zip(self._lasting, self._measured[client].tolist(), strict=True))
        row |= dict.fromkeys(("agreement", "guidance_kl", "positive_flips", "negative_flips"), nan)
        self._set_two_moments(row, {})
        return row

    def _set_two_moments(self, row: dict[str, float], figures: Mapping[str, float]) -> None:
        """Set the figures before fusion from those of the last upload, if there is one."""
        for split in SPLITS:
            for name in ("accuracy", *self._plan.metrics):
                key = f"{name}_before_fusion_{split}"
                row[key] = figures.get(key, row[f"{name}_{split}"])
            row[f"fusion_gain_{split}"] = row[f"accuracy_{split}"] - figures.get(f"{msg.TRAINED}{split}", nan)

    def _server_state(self) -> dict[str, np.ndarray]:
        own = self._flights.state() | self._messages.state() | {MEASURED: self._measured.copy()}
        return super()._server_state() | add_prefix(FLIGHTS, own)

    def _restore_server(self, arrays: Arrays) -> None:
        super()._restore_server(arrays)
        own = strip_prefix(FLIGHTS, arrays)
        self._flights.restore(own)
        self._messages.restore(own, self._node_of_client)
        self._measured = np.array(own[MEASURED])

    def _lasts(self, name: str) -> bool:
        return super()._lasts(name) or name.startswith((FLIGHTS + SHARED, FLIGHTS + DONE))


def _client(flight: tuple[ClientJob, Reply]) -> tuple[int, int]:
    return flight[0].client, flight[0].key


def _layers(arrived: Arrived) -> list[list[tuple[ClientJob, Reply]]]:
    layers: list[dict[int, tuple[ClientJob, Reply]]] = []
    for job, reply in arrived:
        if all(job.client in layer for layer in layers):
            layers.append({})
        next(layer for layer in layers if job.client not in layer)[job.client] = (job, reply)
    return [sorted(layer.values(), key=_client) for layer in layers]
