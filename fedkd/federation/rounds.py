"""The rounds of a federation: train, fuse, end tasks, evaluate, record, save.

One loop serves every strategy and grid. Flower's own `start` neither saves nor measures each client.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from fedkd.errors import Interrupted, RunFailed
from fedkd.federation.checkpoint import CheckpointStore
from fedkd.federation.job_time import JobTime
from fedkd.federation.majority_guessing import ChanceWatch
from fedkd.federation.manifest import SERVER, Checkpoint
from fedkd.federation.measurements import Measurements
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.exchange import Exchange
from fedkd.federation.messages.messenger import Messenger
from fedkd.federation.run_control import RunControl
from fedkd.federation.server_strategy import ServerStrategy
from fedkd.federation.transferability import PHASE, transfer_probe
from fedkd.plan import Plan, evaluated_clients
from fedkd.scenario import result_relevant_keys
from fedkd.server import is_pending_guidance
from fedkd.storage import Arrays, atomic_replacement, write_arrays
from fedkd.tracking import DISK_ERRORS, Recorder, RoundReport, Totals


class Rounds:
    """Runs a scenario's rounds on a grid; `transfer_labels` `[M]` are for measurements, None: unknown."""

    def __init__(
        self,
        plan: Plan,
        grid: Grid,
        strategy: ServerStrategy,
        control: RunControl,
        transfer_labels: np.ndarray | None = None,
    ) -> None:
        self._plan, self._strategy, self._control = plan, strategy, control
        self._schedule, self._observer = plan.schedule, control.observer
        self._probe = transfer_probe(plan.scenario, control, transfer_labels)
        self._messenger = Messenger(grid, plan.scenario.data.clients, control, plan.scenario.faults)
        self._node_of_client = self._messenger.node_of_client
        clock = plan.clock
        self._job_time = None if clock is None else JobTime(plan, clock, self._messenger.client_of)
        strategy.introduce(self._node_of_client)
        self._evaluated = evaluated_clients(plan.scenario)
        self._if_longer: tuple[dict[str, int], dict[str, str]] | None = None

    def run(self) -> Totals:
        """Run every remaining round; return the costs of all rounds.

        A failed client or fusion is a `RunFailed`; `RunControl.stop_requested` ends in `Interrupted`, saved.
        """
        scenario, control = self._plan.scenario, self._control
        store = CheckpointStore(control.folder, self._observer.message)
        try:
            checkpoint = store.latest() if control.resume else None
            done = checkpoint.round if checkpoint else 0
            offsets, digests = self._kept(checkpoint) if checkpoint else (None, None)
            curves = scenario.continual is not None and scenario.continual.evaluate_epochs
            with Recorder(control.folder, offsets=offsets, digests=digests, epochs=curves) as recorder:
                self._record_in(recorder)
                began = self._observer.went_back if control.again else self._observer.run_started
                began(scenario, control.folder, done)
                if checkpoint is not None:
                    self._exchange.totals = checkpoint.totals
                    self._strategy.begin_round(self._tasks(checkpoint.round))
                    self._restore_server(checkpoint.server)
                    self._exchange.hand_back(checkpoint.round, checkpoint.clients)
                else:
                    self._begin()
                last = self._plan.last_round
                for round in range(done + 1, last + 1):
                    self._run_round(round)
                    stopping = control.stop_requested() and round < last
                    if stopping or round == last or round % scenario.checkpoint_every == 0:
                        self._save(round, store)
                    if stopping:
                        store.wait()
                        raise Interrupted(f"stopped after round {round} of {last}; the state is saved")
        except OSError as error:
            if error.errno in DISK_ERRORS:  # reported later (see `explain_disk_errors`)
                raise
            raise RunFailed(f"cannot write to {control.folder}: {error.strerror or error}") from error
        finally:
            store.close()
        return self._exchange.totals

    def _record_in(self, recorder: Recorder) -> None:
        plan, strategy = self._plan, self._strategy
        self._recorder = recorder
        self._measurements = Measurements(plan, recorder, self._control.folder)
        self._chance = ChanceWatch(plan, recorder)
        self._exchange = Exchange(
            plan, self._messenger, strategy, recorder, self._measurements, self._job_time
        )

    def _begin(self) -> None:
        """Measure clients on every task of a stream before any training."""
        if self._plan.scenario.continual is not None:
            self._evaluate(0)
            self._record_failures(0)

    def _run_round(self, round: int) -> None:
        started, before = time.perf_counter(), self._exchange.totals
        finishes, neighbours = round > self._plan.scenario.rounds, None
        evaluated: dict[str, float] = {}
        if finishes:
            train_loss, evaluated = self._finish(round)
        else:
            with self._exchange.charged_to_strategy(round):
                self._strategy.begin_round(self._tasks(round))
            train_loss = self._train(round)
            self._measure_transfer(round)
            neighbours = self._measurements.fusion(round, self._strategy.report())
            self._measurements.server(round, self._strategy.figures())
            self._measurements.server(round, {"knowledge_cache_bytes": self._strategy.cache_bytes()})
            self._measurements.links(round, self._strategy.links())
            self._end_task(round)
            self._record_failures(round)
        if self._job_time is not None:
            self._measurements.server(round, {"virtual_seconds": self._exchange.totals.virtual_seconds})
        if not finishes:
            evaluated = self._evaluate_if_due(round)
        self._record_failures(round)
        seconds = time.perf_counter() - started
        self._exchange.add(seconds=seconds)
        self._recorder.flush()
        totals = self._exchange.totals
        clock = {} if self._job_time is None else {"train/virtual_seconds": totals.virtual_seconds}
        self._observer.round_finished(
            RoundReport(
                round=round,
                rounds=self._plan.last_round,
                accuracy_local=evaluated.get("local/accuracy"),
                accuracy_global=evaluated.get("global/accuracy"),
                accuracy_before_fusion_local=evaluated.get("local/accuracy_before_fusion"),
                accuracy_before_fusion_global=evaluated.get("global/accuracy_before_fusion"),
                fusion_gain=evaluated.get("local/fusion_gain"),
                effective_neighbours=neighbours,
                train_loss=train_loss,
                bytes_up=totals.bytes_up - before.bytes_up,
                bytes_down=totals.bytes_down - before.bytes_down,
                seconds=seconds,
                metrics={**evaluated, **clock},
                task=self._schedule.task(0, round) if self._schedule.in_step else None,
                metric=self._plan.scenario.main_metric,
            )
        )

    def _train(self, round: int) -> float | None:
        clients = self._schedule.participants(round)
        if not clients:  # all of them are away
            self._fuse(round, [])
            return None
        # An average replaces the client's own model, which is measured before; others wait for guidance.
        measured = self._plan.evaluates(round) and self._plan.capabilities.brings_model
        sent = self._exchange.write(round, msg.TRAIN, clients, **{msg.MEASURE_TRAINED: measured})
        replies = self._exchange.send(round, "train", sent)
        self._exchange.changed.update(replies)
        self._wait_for_all(round, sent, replies)
        self._fuse(round, list(replies.values()))
        return self._record_training(round, replies)

    def _fuse(self, round: int, replies: Sequence[Message]) -> None:
        started = time.perf_counter()
        self._observer.phase(round, "fuse", 0, 1)
        with self._exchange.charged_to_strategy(round):
            self._strategy.fuse(round, replies)
        seconds, links = time.perf_counter() - started, self._strategy.links()
        # Without a server, clients send and receive the same bytes.
        cost = self._exchange.account(**({} if links is None else {"bytes_up": links.total}))
        self._recorder.timing(round=round, phase="fuse", seconds=seconds, **cost)

    def _measure_transfer(self, round: int) -> None:
        if self._probe is None or round not in self._probe.rounds:
            return
        started = time.perf_counter()
        nodes = {
            client: self._node_of_client[client] for client in sorted(self._schedule.participants(round))
        }
        found, sent = self._probe.measure(round, nodes, partial(self._exchange.probe, round, PHASE))
        if found is not None:
            self._measurements.transferability(found)
        self._exchange.add(evaluation_bytes=sent)
        self._exchange.record_time(round, PHASE, started, clients=len(nodes), evaluation_bytes=sent)

    def _end_task(self, round: int) -> None:
        clients = self._schedule.ending(round)
        if not clients:
            return
        sent = self._exchange.write(round, msg.END_TASK, clients)
        replies = self._exchange.send(round, "end task", sent)
        self._exchange.changed.update(replies)
        with self._exchange.charged_to_strategy(round):
            figures = self._strategy.end_task(round, list(replies.values()))
        self._measurements.server(round, figures, self._schedule.task(clients[0], round))

    def _evaluate_if_due(self, round: int) -> dict[str, float]:
        if not self._plan.evaluates(round):
            return {}  # guidance comes with clients' next message
        if not self._plan.would_evaluate(round):  # only because the run ends here
            self._recorder.flush()
            self._if_longer = self._recorder.offsets(), self._recorder.digests()
        return self._evaluate(round)

    def _evaluate(self, round: int) -> dict[str, float]:
        return self._measurements.evaluation(round, self._evaluation(round, self._evaluated))

    def _evaluation(self, round: int, clients: Sequence[int]) -> dict[int, Message]:
        sent = self._exchange.write(round, msg.EVALUATE, clients)
        replies = self._exchange.send(round, "evaluate", sent)
        if self._plan.learner is not None:  # a task may have begun, for all of them
            self._exchange.changed.update(replies)
        guided = [message for message in sent if msg.GUIDED & message.content.keys()]
        self._exchange.changed.update(map(self._messenger.client_of, guided))
        return replies

    def _finish(self, round: int) -> tuple[float | None, dict[str, float]]:
        sent = self._exchange.write(round, msg.FINISH, self._evaluated)
        replies = self._exchange.send(round, "finish", sent)
        self._exchange.changed.update(replies)
        self._wait_for_all(round, sent, replies)
        return self._record_training(round, replies), self._measurements.evaluation(round, replies)

    def _tasks(self, round: int) -> dict[int, int]:
        """Return every client's task; nothing without a stream, where all are at the first."""
        if self._plan.scenario.continual is None:
            return {}
        return {client: task or 0 for client, task in enumerate(self._schedule.tasks(round))}

    def _wait_for_all(self, round: int, sent: Sequence[Message], replies: Mapping[int, Message]) -> None:
        """Advance simulated time until the slowest client has answered."""
        if self._job_time is not None:
            self._exchange.add(virtual_seconds=self._job_time.of_round(round, sent, replies))

    def _record_training(self, round: int, replies: Mapping[int, Message]) -> float | None:
        loss = self._measurements.training(round, replies)
        if (warning := self._chance.look(round, replies)) is not None:
            self._observer.message(warning)
        return loss

    def _record_failures(self, round: int) -> None:
        self._measurements.failures(round, self._messenger.failures)
        self._messenger.failures.clear()

    def _save(self, round: int, store: CheckpointStore) -> None:
        if self._control.deployment is not None:  # clients keep their states to themselves
            self._exchange.changed.clear()
            if arrays := self._strategy.state():
                with atomic_replacement(self._control.folder / SERVER) as file:
                    write_arrays(file, arrays)
            return
        started = time.perf_counter()
        states: Mapping[int, Arrays] = {}
        for portion in self._exchange.fetch_states(round):
            if states:
                store.add(round, states)
            states = portion
        self._exchange.record_time(round, "save", started)
        self._recorder.flush()
        offsets, digests = self._recorder.offsets(), self._recorder.digests()
        longer, server = self._if_longer or (offsets, digests), self._server_state()
        checkpoint = Checkpoint(
            round=round,
            totals=self._exchange.totals,
            offsets=offsets,
            digests=digests,
            offsets_if_longer=longer[0],
            digests_if_longer=longer[1],
            scenario=result_relevant_keys(self._plan.scenario),
            server=server,
            clients=states,
            lasting={name for name in server if self._lasts(name)},
        )
        store.save(checkpoint)
        self._exchange.changed.clear()

    def _server_state(self) -> dict[str, np.ndarray]:
        return self._strategy.state() | (self._job_time.state() if self._job_time is not None else {})

    def _lasts(self, name: str) -> bool:
        """Return whether an array of the server's state is never written into."""
        return is_pending_guidance(name)

    def _kept(self, checkpoint: Checkpoint) -> tuple[Mapping[str, int], Mapping[str, str]]:
        """Return the valid bytes and digests of files; a longer run drops its former last evaluation."""
        if self._plan.scenario.rounds > checkpoint.scenario["rounds"]:
            return checkpoint.offsets_if_longer, checkpoint.digests_if_longer
        return checkpoint.offsets, checkpoint.digests

    def _restore_server(self, arrays: Arrays) -> None:
        self._strategy.restore(arrays)
        if self._job_time is not None:
            self._job_time.restore(arrays)
