"""Rounds that wait for nobody: each ends when so many uploads have arrived, on a simulated clock.

A round is a version of what the server has. Nothing here reads a clock on a wall: when a job is over follows
from draws of the seed and from the bytes that it takes, so a run is the same wherever it runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from math import nan

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fedkd.clients.guidance_effect import SPLITS
from fedkd.federation import messages as msg
from fedkd.federation.held_messages import HeldMessages, Reply, is_kept
from fedkd.federation.job_time import Handed
from fedkd.federation.knowledge_fusion import KnowledgeFusion
from fedkd.federation.messages import metrics_of
from fedkd.federation.rounds import Rounds
from fedkd.federation.run_control import RunControl
from fedkd.federation.saved_arrays import Arrays
from fedkd.namespaces import below, under
from fedkd.plan.plan import Plan
from fedkd.server.in_flight import InFlight, Job
from fedkd.tracking.memory import peak_memory_mb

FLIGHTS = "flights/"
MEASURED = "measured"
LASTING = ("accuracy_local", "accuracy_global", "loss_local", "loss_global")
"""What an evaluation tells that stays true until a client changes; all else is about a round's guidance."""

Arrived = Sequence[tuple[Job, Reply]]


class AsynchronousRounds(Rounds):
    """Runs rounds that end after K uploads, of any clients.

    A client that has uploaded is handed the next job: at once where every message brings the server's model,
    else with the fusion that its upload has a part in. It is evaluated when it is answered, and that stands
    until it is answered again. Where every message brings the model, all are evaluated with the newest.
    """

    def __init__(self, plan: Plan, grid: Grid, strategy: KnowledgeFusion, control: RunControl) -> None:
        super().__init__(plan, grid, strategy, control)
        scenario, clients = plan.scenario, plan.scenario.data.clients
        assert scenario.asynchronous is not None and self._job_time is not None
        self._time = self._job_time
        self._fusing = strategy
        self._buffer = scenario.asynchronous.buffer
        self._flights = InFlight(clients, scenario.asynchronous.concurrency or clients, scenario.seed)
        self._messages = HeldMessages()
        self._brings_model = plan.capabilities.brings_model
        self._arrived: dict[int, Reply] = {}  # the last of every client's in the round under way
        self._measured = np.full((clients, len(LASTING)), nan)

    # A round ------------------------------------------------------------------------------------------

    def _train(self, round: int) -> float | None:
        """Have clients work until enough uploads have arrived, and fuse them; return the mean loss."""
        self._depart(round)
        arrived: list[tuple[Job, Reply]] = []
        while len(arrived) < self._buffer:
            job = self._next(round)
            self._flights.land(job.client, hold=not self._brings_model)
            self._exchange.totals = replace(self._exchange.totals, virtual_seconds=job.over)
            arrived.append((job, self._messages.done.pop(job.client)))
            # What arrives at one instant comes before what departs then.
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
        """Write the messages to all that begin a job now; they are sent when their replies are needed."""
        clients = self._flights.departing()
        if not clients:
            return
        write, tells = self._strategy.train_messages, {msg.TELL_TRAINED: self._brings_model}
        for message in self._exchange.write(round, write, clients, **tells):
            client = self._messenger.client_of(message)
            key, handed = self._flights.key(client, round), self._time.begin(message)
            message.content.config_records[msg.CONFIG][msg.SERVER_ROUND] = key
            least = self._time.before_work(client, handed) + self._time.work(client, key, handed, 0)
            start = self._exchange.totals.virtual_seconds
            self._flights.depart(Job(client, round, key, start, least, handed.size, handed.steps))
            self._messages.waiting[client] = message

    def _next(self, round: int) -> Job:
        """Return the job that is over next, once all are done that could be over before it."""
        job = self._flights.first()
        if job is None:
            self._do_all(round)
            job = self._flights.first()
            assert job is not None
        return job

    def _do_all(self, round: int) -> None:
        """Have all clients do their jobs whose messages wait, together."""
        started = time.perf_counter()
        waiting, self._messages.waiting = self._messages.waiting, {}
        answers = self._messenger.send(round, "train", [waiting[client] for client in sorted(waiting)])
        replies = self._exchange.admitted(round, "train", answers)
        self._exchange.changed.update(replies)
        for client, message in replies.items():
            job, reply = self._flights.jobs[client], Reply.of(message)
            handed = Handed(job.size, job.steps)
            before = self._time.before_work(client, handed)
            working = before + self._time.work(client, job.key, handed, reply.samples)
            over = job.start + (working + self._time.after_work(client, reply.size))
            self._flights.done(client, working, over)
            self._messages.done[client] = reply
        self._exchange.record_time(round, "train", started, clients=len(replies), memory_mb=peak_memory_mb())

    def _fuse_arrived(self, round: int, arrived: Arrived) -> None:
        """Fuse what has arrived; what a client has sent in addition, by a call of its own."""
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

    # Evaluation ---------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Find out how clients do before any training: that stands until they are answered."""
        if not self._brings_model:
            self._measure(0, self._evaluated)
            self._record_failures(0)

    def _evaluate_if_due(self, round: int) -> dict[str, float]:
        """Evaluate those that are answered, in any case: they will have changed by the next evaluation."""
        if not self._plan.evaluates(round) and not self._brings_model:
            self._measure(round, self._answered())
        return super()._evaluate_if_due(round)

    def _evaluate(self, round: int) -> dict[str, float]:
        if self._brings_model:
            replies = self._measure(round, self._evaluated)
            rows = {client: metrics_of(reply) for client, reply in replies.items()}
            for client, row in rows.items():
                self._set_two_moments(row, self._arrived.get(client))
        else:
            replies = self._measure(round, self._answered())
            found = {client: metrics_of(reply) for client, reply in replies.items()}
            rows = {client: found.get(client) or self._as_before(client) for client in self._evaluated}
        return self._measurements.measured(round, rows) | self._measurements.choices(round, replies)

    def _answered(self) -> list[int]:
        """Return those who are evaluated of the clients whose uploads the round has fused."""
        return [client for client in self._evaluated if client in self._arrived]

    def _measure(self, round: int, clients: Sequence[int]) -> dict[int, Message]:
        """Evaluate some clients, and keep what stays true; return their replies."""
        if not clients:
            return {}
        sent = self._exchange.write(round, self._strategy.evaluate_messages, clients)
        replies = self._exchange.send(round, "evaluate", sent)
        guided = [message for message in sent if msg.GUIDED & message.content.keys()]
        self._exchange.changed.update(map(self._messenger.client_of, guided))
        for client, reply in replies.items():
            row = metrics_of(reply)
            self._measured[client] = [row[name] for name in LASTING]
        return replies

    def _as_before(self, client: int) -> dict[str, float]:
        """Return what an evaluation would tell of a client that nobody has answered since the last."""
        row = dict(zip(LASTING, self._measured[client].tolist(), strict=True))
        for name in ("agreement", "guidance_kl", "positive_flips", "negative_flips"):
            row[name] = nan
        self._set_two_moments(row, None)
        return row

    def _set_two_moments(self, row: dict[str, float], trained: Reply | None) -> None:
        """Say how a client did after its own training: as its last upload tells, or no other than now."""
        for split in SPLITS:
            accuracy = row[f"accuracy_{split}"]
            before = None if trained is None else trained.figures.get(f"{msg.TRAINED}{split}")
            row[f"accuracy_trained_{split}"] = accuracy if before is None else before
            row[f"fusion_gain_{split}"] = nan if before is None else accuracy - before

    # State --------------------------------------------------------------------------------------------

    def _server_state(self) -> dict[str, np.ndarray]:
        own = self._flights.state() | self._messages.state() | {MEASURED: self._measured.copy()}
        return super()._server_state() | under(FLIGHTS, own)

    def _restore_server(self, arrays: Arrays) -> None:
        super()._restore_server(arrays)
        own = below(FLIGHTS, arrays)
        self._flights.restore(own)
        self._messages.restore(own, self._node_of_client)
        self._measured = np.array(own[MEASURED])

    def _lasts(self, name: str) -> bool:
        return super()._lasts(name) or (name.startswith(FLIGHTS) and is_kept(name.removeprefix(FLIGHTS)))


def _client(flight: tuple[Job, Reply]) -> tuple[int, int]:
    job, _ = flight
    return job.client, job.key


def _layers(arrived: Arrived) -> list[list[tuple[Job, Reply]]]:
    """Return what has arrived in parts in which there is no client twice, each in client order."""
    layers: list[dict[int, tuple[Job, Reply]]] = []
    for job, reply in arrived:
        layer = next((layer for layer in layers if job.client not in layer), None)
        if layer is None:
            layers.append(layer := {})
        layer[job.client] = (job, reply)
    return [sorted(layer.values(), key=_client) for layer in layers]
