"""The rounds of a federation: train, fuse, evaluate, record, save.

One loop serves every strategy and every grid. It drives a `flwr.serverapp.strategy.Strategy` through its
public methods, where Flower's own `start` would leave no room for checkpoints or for measuring each client.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedkd.errors import Interrupted, RunFailed, TrainingDiverged, UserError
from fedkd.federation import messages as msg
from fedkd.federation.arrays import from_record, payload_bytes, to_record
from fedkd.federation.checkpoint import Arrays, Checkpoint, CheckpointStore, Totals
from fedkd.federation.cohort import Cohort, nodes_in_client_order, sample_clients
from fedkd.federation.exchange import Exchange
from fedkd.federation.faults import present_clients
from fedkd.federation.flower_strategies import in_precision_of, restore_strategy, strategy_state
from fedkd.federation.knowledge_fusion import KnowledgeFusion
from fedkd.federation.measurements import Measurements
from fedkd.federation.session import Session
from fedkd.scenario.schema import Scenario
from fedkd.scenario.stream import begins_task, evaluates, task_of
from fedkd.tracking.events import RoundReport
from fedkd.tracking.memory import peak_memory_mb
from fedkd.tracking.recorder import Recorder

WEIGHTS = "weights/"
STRATEGY = "strategy/"


class Rounds:
    """Runs the rounds of one scenario on one grid.

    Args:
        scenario: The resolved scenario.
        grid: The federation; one node per client.
        strategy: Fuses knowledge, or averages weights.
        initial_weights: What a strategy that averages weights starts from; empty for knowledge.
        session: Where to write and whom to tell.
        turn_to: Told the task of every round of a stream before it begins.
    """

    def __init__(
        self,
        scenario: Scenario,
        grid: Grid,
        strategy: Strategy,
        initial_weights: Arrays,
        session: Session,
        turn_to: Callable[[int], None] = lambda task: None,
    ) -> None:
        self._scenario = scenario
        self._grid = grid
        self._strategy = strategy
        self._weights = to_record(initial_weights)
        self._session = session
        self._turn_to = turn_to
        self._observer = session.observer
        self._exchange = Exchange(grid, scenario.data.clients, session)
        self._node_of_client = self._exchange.node_of_client
        if isinstance(strategy, KnowledgeFusion):
            strategy.introduce(self._node_of_client)
        self._changed: set[int] = set()
        self._totals = Totals()

    # The run ------------------------------------------------------------------------------------------

    def run(self) -> Totals:
        """Run every round that is left; return what all rounds cost, those before a resume included.

        Raises:
            RunFailed: A client or the fusion failed.
            Interrupted: `Session.stop_requested` said so; everything up to there is saved.
        """
        scenario, session = self._scenario, self._session
        store = CheckpointStore(session.folder)
        try:
            checkpoint = store.latest() if session.resume else None
            done = checkpoint.round if checkpoint else 0
            offsets = checkpoint.offsets if checkpoint else None
            curves = scenario.continual is not None and scenario.continual.evaluate_epochs
            with Recorder(session.folder, offsets=offsets, epochs=curves) as recorder:
                self._recorder = recorder
                self._measurements = Measurements(scenario, recorder, session.folder)
                self._observer.run_started(scenario, session.folder, done)
                if checkpoint is not None:
                    self._restore(checkpoint)
                elif scenario.continual is not None:
                    self._evaluate(0)
                for round in range(done + 1, scenario.rounds + 1):
                    self._run_round(round)
                    stopping = session.stop_requested() and round < scenario.rounds
                    if stopping or round == scenario.rounds or round % scenario.checkpoint_every == 0:
                        self._save(round, store)
                    if stopping:
                        store.wait()
                        raise Interrupted(
                            f"stopped after round {round} of {scenario.rounds}; the state is saved"
                        )
        except OSError as error:
            raise RunFailed(f"cannot write to {session.folder}: {error.strerror or error}") from error
        finally:
            store.close()
        return self._totals

    def _run_round(self, round: int) -> None:
        scenario = self._scenario
        started = time.perf_counter()
        before = self._totals
        self._begin_task(round)
        train_loss = self._train(round)
        neighbours = None
        if isinstance(self._strategy, KnowledgeFusion):
            neighbours = self._measurements.fusion(round, self._strategy)
        evaluated = self._evaluate(round) if evaluates(scenario, round) else {}
        seconds = time.perf_counter() - started
        self._totals = replace(self._totals, seconds=before.seconds + seconds)
        self._recorder.flush()
        self._observer.round_finished(
            RoundReport(
                round=round,
                rounds=scenario.rounds,
                accuracy_local=evaluated.get("local/accuracy"),
                accuracy_global=evaluated.get("global/accuracy"),
                fusion_gain=evaluated.get("local/fusion_gain"),
                effective_neighbours=neighbours,
                train_loss=train_loss,
                bytes_up=self._totals.bytes_up - before.bytes_up,
                bytes_down=self._totals.bytes_down - before.bytes_down,
                seconds=seconds,
                metrics=evaluated,
                task=task_of(scenario, round),
            )
        )

    def _begin_task(self, round: int) -> None:
        task = task_of(self._scenario, round)
        if task is None:
            return
        self._turn_to(task)
        if begins_task(self._scenario, round) and isinstance(self._strategy, KnowledgeFusion):
            self._strategy.forget()

    # Phases -------------------------------------------------------------------------------------------

    def _train(self, round: int) -> float | None:
        scenario = self._scenario
        sampled = sample_clients(scenario.data.clients, scenario.clients_per_round, scenario.seed, round)
        clients = present_clients(scenario, sampled, round)
        cohort = Cohort(self._grid, nodes_in_client_order(self._node_of_client, clients))
        config = ConfigRecord({msg.MEASURE_BASELINE: evaluates(scenario, round) and bool(self._weights)})
        requests = self._strategy.configure_train(round, self._weights, config, cohort)
        replies = self._send_phase(round, "train", requests)
        self._changed.update(replies)

        started = time.perf_counter()
        self._observer.phase(round, "fuse", 0, 1)
        try:
            weights, _ = self._strategy.aggregate_train(round, list(replies.values()))
        except UserError:
            raise
        except TrainingDiverged as error:
            raise RunFailed(str(error), round=round) from error
        except Exception as error:
            first_line = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RunFailed(
                f"strategy '{scenario.fusion.strategy}' raised {first_line}",
                round=round,
                details=traceback.format_exc(),
            ) from error
        if weights is not None:
            self._weights = in_precision_of(self._weights, weights)
        self._recorder.timing(round=round, phase="fuse", seconds=time.perf_counter() - started)
        return self._measurements.training(round, replies)

    def _evaluate(self, round: int) -> dict[str, float]:
        everyone = Cohort(self._grid, nodes_in_client_order(self._node_of_client, self._node_of_client))
        requests = self._strategy.configure_evaluate(round, self._weights, ConfigRecord(), everyone)
        sent = list(requests)
        replies = self._send_phase(round, "evaluate", sent)
        self._strategy.aggregate_evaluate(round, list(replies.values()))
        if self._scenario.continual is not None:  # a task may have begun or ended, for everyone
            self._changed.update(replies)
        guided = {m.metadata.dst_node_id for m in sent if msg.GUIDANCE in m.content}
        self._changed.update(c for c, node in self._node_of_client.items() if node in guided)
        return self._measurements.evaluation(round, replies)

    # Messages -----------------------------------------------------------------------------------------

    def _send_phase(self, round: int, phase: str, requests: Iterable[Message]) -> dict[int, Message]:
        """Send the messages of a phase, record what they cost, and return the replies (see `Exchange`)."""
        sent = list(requests)
        started = time.perf_counter()
        replies = self._exchange.send(round, phase, sent)
        down = sum(payload_bytes(message.content) for message in sent)
        up = sum(payload_bytes(reply.content) for reply in replies.values())
        self._totals = replace(
            self._totals, bytes_up=self._totals.bytes_up + up, bytes_down=self._totals.bytes_down + down
        )
        self._recorder.timing(
            round=round,
            phase=phase,
            seconds=time.perf_counter() - started,
            clients=len(sent),
            bytes_up=up,
            bytes_down=down,
            memory_mb=peak_memory_mb(),
        )
        return replies

    # Checkpoints --------------------------------------------------------------------------------------

    def _save(self, round: int, store: CheckpointStore) -> None:
        started = time.perf_counter()
        nodes = [self._node_of_client[client] for client in sorted(self._changed)]
        replies = self._exchange.send(
            round, "save", [Message(RecordDict(), node, msg.EXPORT_STATE) for node in nodes]
        )
        states = {
            client: from_record(reply.content.array_records[msg.STATE]) for client, reply in replies.items()
        }
        self._recorder.timing(round=round, phase="save", seconds=time.perf_counter() - started)
        self._recorder.flush()
        store.save(Checkpoint(round, self._totals, self._recorder.offsets(), self._server_state(), states))
        self._changed.clear()

    def _server_state(self) -> dict[str, np.ndarray]:
        if isinstance(self._strategy, KnowledgeFusion):
            state = self._strategy.state()
        else:
            state = strategy_state(self._strategy)
        arrays = {STRATEGY + name: values for name, values in state.items()}
        return arrays | {WEIGHTS + name: values for name, values in from_record(self._weights).items()}

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._totals = checkpoint.totals
        weights = _with_prefix(checkpoint.server, WEIGHTS)
        # The order of a model's tensors is part of what Flower's strategies rely on; a file does not keep it.
        self._weights = to_record({name: weights[name] for name in self._weights})
        state = _with_prefix(checkpoint.server, STRATEGY)
        if isinstance(self._strategy, KnowledgeFusion):
            self._strategy.restore(state)
        else:
            restore_strategy(self._strategy, state)
        requests = [
            Message(
                RecordDict({msg.STATE: to_record(arrays)}), self._node_of_client[client], msg.IMPORT_STATE
            )
            for client, arrays in checkpoint.clients.items()
        ]
        self._exchange.send(checkpoint.round, "restore", requests)


def _with_prefix(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
