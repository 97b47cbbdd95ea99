"""The rounds of a federation: train, fuse, end tasks, evaluate, record, save.

One loop serves every strategy and every grid. It asks a `ServerStrategy` for the messages of each phase,
where Flower's own `start` would leave no room for checkpoints or for measuring each client.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedkd.errors import Interrupted, RunFailed, TrainingDiverged, UserError, described
from fedkd.federation import messages as msg
from fedkd.federation.arrays import payload_bytes
from fedkd.federation.chance import ChanceWatch
from fedkd.federation.checkpoint import CheckpointStore
from fedkd.federation.client_states import fetched, hand_back
from fedkd.federation.gate import sift
from fedkd.federation.job_time import JobTime
from fedkd.federation.measurements import Measurements
from fedkd.federation.messenger import Messenger
from fedkd.federation.node_subset import NodeSubset, nodes_in_client_order
from fedkd.federation.run_control import RunControl
from fedkd.federation.saved_arrays import Arrays, write_arrays
from fedkd.federation.saved_checkpoint import SERVER, Checkpoint
from fedkd.federation.server_strategy import ServerStrategy
from fedkd.federation.transferability import PHASE, transfer_probe
from fedkd.plan.evaluated import evaluated_clients
from fedkd.plan.plan import Plan
from fedkd.plugins import contained
from fedkd.run_folder import DISK_ERRORS
from fedkd.scenario.identity import decisive
from fedkd.server.by_task import waits
from fedkd.tracking.atomic import replacing
from fedkd.tracking.events import RoundReport
from fedkd.tracking.memory import peak_memory_mb
from fedkd.tracking.recorder import Recorder
from fedkd.tracking.totals import Totals


class Rounds:
    """Runs the rounds of one scenario on one grid.

    Args:
        plan: What to simulate.
        grid: The federation; one node per client.
        strategy: Makes something of what clients send.
        control: Where to write and whom to tell.
        transfer_labels: True labels of the transfer set `[M]`, for what is measured; None: not known.
    """

    def __init__(
        self,
        plan: Plan,
        grid: Grid,
        strategy: ServerStrategy,
        control: RunControl,
        transfer_labels: np.ndarray | None = None,
    ) -> None:
        self._plan = plan
        self._probe = transfer_probe(plan.scenario, control, transfer_labels)
        self._schedule = plan.schedule
        self._grid = grid
        self._strategy = strategy
        self._control = control
        self._observer = control.observer
        self._messenger = Messenger(grid, plan.scenario.data.clients, control, plan.scenario.faults)
        self._node_of_client = self._messenger.node_of_client
        clock = plan.clock
        self._job_time = None if clock is None else JobTime(plan, clock, self._messenger.client_of)
        strategy.introduce(self._node_of_client)
        self._changed: set[int] = set()
        self._totals = Totals()
        self._if_longer: tuple[dict[str, int], dict[str, str]] | None = None

    # The run ------------------------------------------------------------------------------------------

    def run(self) -> Totals:
        """Run every round that is left; return what all rounds cost, those before a resume included.

        Raises:
            RunFailed: A client or the fusion failed.
            Interrupted: `RunControl.stop_requested` said so; everything up to there is saved.
        """
        scenario, control = self._plan.scenario, self._control
        store = CheckpointStore(control.folder, self._observer.message)
        try:
            checkpoint = store.latest() if control.resume else None
            done = checkpoint.round if checkpoint else 0
            offsets, digests = self._kept(checkpoint) if checkpoint else (None, None)
            curves = scenario.continual is not None and scenario.continual.evaluate_epochs
            with Recorder(control.folder, offsets=offsets, digests=digests, epochs=curves) as recorder:
                self._recorder = recorder
                self._measurements = Measurements(self._plan, recorder, control.folder)
                self._chance = ChanceWatch(self._plan, recorder)
                began = self._observer.went_back if control.again else self._observer.run_started
                began(scenario, control.folder, done)
                if checkpoint is not None:
                    self._restore(checkpoint)
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
            if error.errno in DISK_ERRORS:  # told of with what is kept (see `disk_told`)
                raise
            raise RunFailed(f"cannot write to {control.folder}: {error.strerror or error}") from error
        finally:
            store.close()
        return self._totals

    def _begin(self) -> None:
        """Find out how clients do on every task of a stream before any training."""
        if self._plan.scenario.continual is not None:
            self._evaluate(0)
            self._record_failures(0)

    def _run_round(self, round: int) -> None:
        started = time.perf_counter()
        before = self._totals
        neighbours: float | None = None
        evaluated: dict[str, float] = {}
        if round > self._plan.scenario.rounds:
            train_loss, evaluated = self._finish(round)
            self._record_time(round)
        else:
            with self._charged_to_strategy(round):
                self._strategy.begin_round(self._tasks(round))
            train_loss = self._train(round)
            self._measure_transfer(round)
            neighbours = self._measurements.fusion(round, self._strategy.report())
            self._measurements.bank(round, self._strategy.kept_bytes())
            self._measurements.links(round, self._strategy.links())
            self._end_task(round)
            self._record_failures(round)
            self._record_time(round)
            if not self._plan.evaluates(round):
                self._go_on_without_evaluation(round)
            else:
                if not self._plan.would_evaluate(round):  # only because the run ends here
                    self._recorder.flush()
                    self._if_longer = self._recorder.offsets(), self._recorder.digests()
                evaluated = self._evaluate(round)
        self._record_failures(round)
        seconds = time.perf_counter() - started
        self._totals = replace(self._totals, seconds=before.seconds + seconds)
        self._recorder.flush()
        self._observer.round_finished(
            RoundReport(
                round=round,
                rounds=self._plan.last_round,
                accuracy_local=evaluated.get("local/accuracy"),
                accuracy_global=evaluated.get("global/accuracy"),
                accuracy_trained_local=evaluated.get("local/accuracy_trained"),
                accuracy_trained_global=evaluated.get("global/accuracy_trained"),
                fusion_gain=evaluated.get("local/fusion_gain"),
                effective_neighbours=neighbours,
                train_loss=train_loss,
                bytes_up=self._totals.bytes_up - before.bytes_up,
                bytes_down=self._totals.bytes_down - before.bytes_down,
                seconds=seconds,
                metrics={**evaluated, **self._time_told()},
                task=self._schedule.task(0, round) if self._schedule.in_step else None,
            )
        )

    def _record_time(self, round: int) -> None:
        if self._job_time is not None:
            self._measurements.clock(round, self._totals.virtual_seconds)

    def _time_told(self) -> dict[str, float]:
        """Return simulated time as a report on a round has it; nothing without a clock."""
        return {} if self._job_time is None else {"train/virtual_seconds": self._totals.virtual_seconds}

    def _record_failures(self, round: int) -> None:
        self._measurements.failures(round, self._messenger.failures)
        self._messenger.failures.clear()

    # Phases -------------------------------------------------------------------------------------------

    def _tasks(self, round: int) -> dict[int, int]:
        """Return the task that every client is at in a round; 0 without a stream."""
        return {client: task or 0 for client, task in enumerate(self._schedule.tasks(round))}

    def _train(self, round: int) -> float | None:
        clients = self._schedule.participants(round)
        if not clients:  # all of them are away
            self._fuse(round, [])
            return None
        # A client's own model is gone when the average arrives; otherwise there is time until guidance comes.
        measured = self._plan.evaluates(round) and self._plan.strategy.brings_model
        config = ConfigRecord({msg.MEASURE_TRAINED: measured})
        with self._charged_to_strategy(round):
            messages = self._strategy.train_messages(round, config, self._nodes_of(clients))
        replies = self._send_phase(round, "train", messages)
        self._changed.update(replies)
        self._wait_for_all(round, messages, replies)
        self._fuse(round, list(replies.values()))
        return self._trained(round, replies)

    def _wait_for_all(self, round: int, sent: Sequence[Message], replies: Mapping[int, Message]) -> None:
        """Have simulated time go on, where there is a clock, until the slowest client has answered."""
        if self._job_time is not None:
            taken = self._job_time.of_round(round, sent, replies)
            self._totals = replace(self._totals, virtual_seconds=self._totals.virtual_seconds + taken)

    def _go_on_without_evaluation(self, round: int) -> None:
        """Do nothing: clients are handed their guidance with their next message."""

    def _trained(self, round: int, replies: Mapping[int, Message]) -> float | None:
        """Record local training, tell of clients that it taught nothing, and return the mean loss."""
        loss = self._measurements.training(round, replies)
        if (warning := self._chance.look(round, replies)) is not None:
            self._observer.message(warning)
        return loss

    def _fuse(self, round: int, replies: Sequence[Message]) -> None:
        started = time.perf_counter()
        self._observer.phase(round, "fuse", 0, 1)
        with self._charged_to_strategy(round):
            self._strategy.fuse(round, replies)
        seconds, links = time.perf_counter() - started, self._strategy.links()
        # What clients send each other has been sent once and received once.
        cost = {} if links is None else {"bytes_up": links.total}
        cost["bytes_down"] = self._account(**cost)
        self._recorder.timing(round=round, phase="fuse", seconds=seconds, **cost)

    @contextmanager
    def _charged_to_strategy(self, round: int) -> Iterator[None]:
        """Name the strategy, which may be a plug-in, for what it raises.

        Raises:
            RunFailed: It raised something.
        """
        try:
            # What leaves the range of floats is told by who checks what was made, not by NumPy, in passing.
            with contained(), np.errstate(all="ignore"):
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

    def _measure_transfer(self, round: int) -> None:
        """Measure and record who would gain from whom, if it is time; it is over before guidance comes."""
        if self._probe is None or not self._probe.is_due(round):
            return
        started = time.perf_counter()
        clients = self._schedule.participants(round)
        nodes = {client: self._node_of_client[client] for client in sorted(clients)}
        found, sent = self._probe.measure(
            round,
            nodes,
            lambda messages: self._admitted(round, PHASE, self._messenger.send(round, PHASE, messages)),
        )
        if found is not None:
            self._measurements.transferability(found)
        self._totals = replace(self._totals, evaluation_bytes=self._totals.evaluation_bytes + sent)
        seconds = time.perf_counter() - started
        self._recorder.timing(
            round=round, phase=PHASE, seconds=seconds, clients=len(clients), evaluation_bytes=sent
        )

    def _end_task(self, round: int) -> None:
        clients = self._schedule.ending(round)
        if clients:
            with self._charged_to_strategy(round):
                messages = self._strategy.end_task_messages(round, ConfigRecord(), self._nodes_of(clients))
            replies = self._send_phase(round, "end task", messages)
            self._changed.update(replies)
            with self._charged_to_strategy(round):
                figures = self._strategy.end_task(round, list(replies.values()))
            self._measurements.server(round, self._schedule.task(clients[0], round), figures)

    def _evaluate(self, round: int) -> dict[str, float]:
        with self._charged_to_strategy(round):
            messages = self._strategy.evaluate_messages(round, ConfigRecord(), self._evaluated)
        replies = self._send_phase(round, "evaluate", messages)
        if self._plan.learner is not None:  # a task may have begun, for all of them
            self._changed.update(replies)
        guided = {m.metadata.dst_node_id for m in messages if msg.GUIDED & m.content.keys()}
        self._changed.update(c for c, node in self._node_of_client.items() if node in guided)
        return self._measurements.evaluation(round, replies)

    def _finish(self, round: int) -> tuple[float | None, dict[str, float]]:
        """Have clients train once more on their own; return the mean loss and what was measured."""
        with self._charged_to_strategy(round):
            messages = self._strategy.finish_messages(round, ConfigRecord(), self._evaluated)
        replies = self._send_phase(round, "finish", messages)
        self._changed.update(replies)
        self._wait_for_all(round, messages, replies)
        return self._trained(round, replies), self._measurements.evaluation(round, replies)

    # Messages -----------------------------------------------------------------------------------------

    def _nodes_of(self, clients: Iterable[int]) -> NodeSubset:
        return NodeSubset(self._grid, nodes_in_client_order(self._node_of_client, clients))

    @property
    def _evaluated(self) -> NodeSubset:
        return self._nodes_of(evaluated_clients(self._plan.scenario))

    def _send_phase(self, round: int, phase: str, sent: Sequence[Message]) -> dict[int, Message]:
        """Send the messages of a phase, record what they cost, and return the replies (see `Messenger`)."""
        started = time.perf_counter()
        answers = self._messenger.send(round, phase, sent)
        replies = self._admitted(round, phase, answers)
        # A client whose reply is refused has done its work all the same.
        self._changed.update(answers.keys() - replies.keys())
        answered = {self._node_of_client[client] for client in answers}
        self._strategy.take_back([m for m in sent if m.metadata.dst_node_id not in answered])
        if self._job_time is not None and phase in ("evaluate", "end task"):
            self._job_time.hand([m for m in sent if m.metadata.dst_node_id in answered])
        up = 0  # without a server it is counted by links, once it is fused
        if self._plan.graph is None:
            up = sum(payload_bytes(reply.content) for reply in replies.values())
        cost = {"bytes_up": up, "bytes_down": self._account(bytes_up=up)}
        if phase == "evaluate":
            cost = {"evaluation_bytes": self._account_evaluation(sent)}
        self._recorder.timing(
            round=round,
            phase=phase,
            seconds=time.perf_counter() - started,
            clients=len(sent),
            **cost,
            memory_mb=peak_memory_mb(),
        )
        return replies

    def _admitted(self, round: int, phase: str, answers: Mapping[int, Message]) -> dict[int, Message]:
        """Return the replies that pass the gate (see `fedkd.federation.gate`), in client order.

        Raises:
            RunFailed: One does not, and the scenario has the run end then.
        """
        uploads = self._strategy.misfits if phase == "train" else None
        sound, misfits = sift(answers, self._measurements.figures(phase), uploads)
        if misfits:
            self._messenger.refuse(round, phase, misfits, len(answers))
        return sound

    def _account(self, bytes_up: int = 0) -> int:
        """Add what the method has sent to the totals; return the bytes that went to clients."""
        down, totals = self._strategy.sent_bytes(), self._totals
        self._totals = replace(
            totals, bytes_up=totals.bytes_up + bytes_up, bytes_down=totals.bytes_down + down
        )
        return down

    def _account_evaluation(self, sent: Sequence[Message]) -> int:
        """Add what was sent for the evaluation alone; guidance that rode along is the method's."""
        contents = [message.content for message in sent]
        own = [RecordDict({msg.GUIDANCE: c[msg.GUIDANCE]}) for c in contents if msg.GUIDANCE in c]
        extra = sum(map(payload_bytes, contents)) - sum(map(payload_bytes, own))
        self._totals = replace(self._totals, evaluation_bytes=self._totals.evaluation_bytes + extra)
        return extra

    # Checkpoints --------------------------------------------------------------------------------------

    def _save(self, round: int, store: CheckpointStore) -> None:
        if self._control.deployment is not None:  # clients keep their states to themselves
            self._save_server()
            return
        started = time.perf_counter()
        states: Mapping[int, Arrays] = {}
        for portion in fetched(self._messenger, round, self._changed):
            if states:
                store.add(round, states)
            states = portion
        self._recorder.timing(round=round, phase="save", seconds=time.perf_counter() - started)
        self._recorder.flush()
        now = self._recorder.offsets(), self._recorder.digests()
        longer, server = self._if_longer or now, self._server_state()
        store.save(
            Checkpoint(
                round=round,
                totals=self._totals,
                offsets=now[0],
                digests=now[1],
                offsets_if_longer=longer[0],
                digests_if_longer=longer[1],
                scenario=decisive(self._plan.scenario),
                server=server,
                clients=states,
                lasting={name for name in server if self._lasts(name)},
            )
        )
        self._changed.clear()

    def _server_state(self) -> dict[str, np.ndarray]:
        """Return all of the server's that a later round depends on."""
        return self._strategy.state() | (self._job_time.state() if self._job_time is not None else {})

    def _lasts(self, name: str) -> bool:
        """Return whether an array of that is one that nobody writes into."""
        return waits(name)

    def _save_server(self) -> None:
        """Write what the server's strategy carries: of one that averages weights, the model."""
        self._changed.clear()
        if arrays := self._strategy.state():
            with replacing(self._control.folder / SERVER) as file:
                write_arrays(file, arrays)

    def _kept(self, checkpoint: Checkpoint) -> tuple[Mapping[str, int], Mapping[str, str]]:
        """Return how much of the run folder's files stands: all, or all but what the end of a run added.

        Returns:
            Bytes of each file, and their digests.
        """
        if self._plan.scenario.rounds > checkpoint.scenario["rounds"]:
            return checkpoint.offsets_if_longer, checkpoint.digests_if_longer
        return checkpoint.offsets, checkpoint.digests

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._totals = checkpoint.totals
        self._strategy.begin_round(self._tasks(checkpoint.round))
        self._restore_server(checkpoint.server)
        hand_back(self._messenger, checkpoint.round, checkpoint.clients)

    def _restore_server(self, arrays: Arrays) -> None:
        self._strategy.restore(arrays)
        if self._job_time is not None:
            self._job_time.restore(arrays)
