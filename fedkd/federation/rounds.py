"""The rounds of a federation: train, fuse, evaluate, record, save.

One loop serves every strategy and every grid. It drives a `flwr.serverapp.strategy.Strategy` through its
public methods, where Flower's own `start` would leave no room for checkpoints or for measuring each client.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedkd.errors import Interrupted, RunFailed, TrainingDiverged, UserError
from fedkd.federation import messages as msg
from fedkd.federation.arrays import from_record, payload_bytes, to_record
from fedkd.federation.checkpoint import Arrays, Checkpoint, CheckpointStore, Totals
from fedkd.federation.cohort import Cohort, nodes_in_client_order, sample_clients
from fedkd.federation.faults import poisoned_clients, present_clients
from fedkd.federation.flower_strategies import in_precision_of, restore_strategy, strategy_state
from fedkd.federation.knowledge_fusion import KnowledgeFusion
from fedkd.federation.replies import failure_of, first_line, metrics_of
from fedkd.federation.task_metrics import TaskMetric, is_task_metric
from fedkd.fusion.weights import effective_neighbours
from fedkd.scenario.schema import Scenario
from fedkd.scenario.stream import begins_task, evaluates, task_of
from fedkd.tracking.events import RoundReport, RunObserver
from fedkd.tracking.memory import peak_memory_mb
from fedkd.tracking.recorder import Recorder

EVALUATED = (
    ("local", "accuracy", "accuracy_local"),
    ("local", "loss", "loss_local"),
    ("local", "fusion_gain", "fusion_gain_local"),
    ("global", "accuracy", "accuracy_global"),
    ("global", "loss", "loss_global"),
    ("global", "fusion_gain", "fusion_gain_global"),
    ("global", "positive_flips", "positive_flips"),
    ("global", "negative_flips", "negative_flips"),
    ("train", "agreement", "agreement"),
    ("train", "guidance_kl", "guidance_kl"),
)
"""Split and name of every metric of an evaluation, and its key in a reply."""
WEIGHTS = "weights/"
STRATEGY = "strategy/"


@dataclass(frozen=True)
class Session:
    """What a run needs besides the scenario: where it writes, who watches, and when to stop.

    Args:
        folder: The run folder; `scenario.toml` is already in it.
        observer: Told what happens.
        stop_requested: Asked after every round; true ends the run there, with its state saved.
        resume: Whether to go on from the folder's latest checkpoint.
    """

    folder: Path
    observer: RunObserver = field(default_factory=RunObserver)
    stop_requested: Callable[[], bool] = lambda: False
    resume: bool = False


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
        self._node_of_client = self._identify()
        if isinstance(strategy, KnowledgeFusion):
            strategy.introduce(self._node_of_client)
        self._poisoned = poisoned_clients(scenario)
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
        neighbours = self._record_weights(round)
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
        replies = self._exchange(round, "train", requests)
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
        losses = {client: metrics_of(reply)["train_loss"] for client, reply in replies.items()}
        trained = {client: loss for client, loss in losses.items() if not isnan(loss)}
        self._record_curves(round, replies)
        return self._record(round, "train", "loss", trained) if trained else None

    def _record_weights(self, round: int) -> float | None:
        """Record the effective number of neighbours, and keep the whole matrix beside the metrics."""
        if not isinstance(self._strategy, KnowledgeFusion) or self._strategy.weights is None:
            return None
        clients, weights = self._strategy.weights
        folder = self._session.folder / "fusion"
        folder.mkdir(exist_ok=True)
        with (folder / f"round-{round:05d}.npz").open("wb") as file:
            np.savez(file, clients=np.array(clients), weights=weights.astype(np.float32))
        counts = dict(zip(clients, effective_neighbours(weights).tolist(), strict=True))
        receivers = {client: counts[client] for client in self._strategy.present}
        return self._record(round, "train", "effective_neighbours", receivers)

    def _evaluate(self, round: int) -> dict[str, float]:
        everyone = Cohort(self._grid, nodes_in_client_order(self._node_of_client, self._node_of_client))
        requests = self._strategy.configure_evaluate(round, self._weights, ConfigRecord(), everyone)
        sent = list(requests)
        guided = [m.metadata.dst_node_id for m in sent if msg.GUIDANCE in m.content]
        replies = self._exchange(round, "evaluate", sent)
        self._strategy.aggregate_evaluate(round, list(replies.values()))
        self._changed.update(c for c, node in self._node_of_client.items() if node in set(guided))
        rows = {client: metrics_of(reply) for client, reply in replies.items()}
        means = {}
        for split, metric, key in EVALUATED if round > 0 else ():
            values = {client: row[key] for client, row in rows.items() if not isnan(row[key])}
            if values:
                means[f"{split}/{metric}"] = self._record(round, split, metric, values)
        return means | self._record_tasks(round, rows) | self._record_learners(round, replies)

    def _record_tasks(self, round: int, rows: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
        """Record what clients measured on every task of a stream; return the means by key."""
        means = {}
        keys = dict.fromkeys(key for row in rows.values() for key in row if is_task_metric(key))
        for key in keys:
            values = {client: row[key] for client, row in rows.items() if not isnan(row.get(key, nan))}
            if values:
                metric, split, task = TaskMetric.from_key(key)
                means[key] = self._record(round, split, metric, values, task=task)
        return means

    def _record_learners(self, round: int, replies: Mapping[int, Message]) -> dict[str, float]:
        """Record what learners say at the end of a task; return the means by key."""
        records = {
            client: reply.content.config_records[msg.LEARNER]
            for client, reply in replies.items()
            if msg.LEARNER in reply.content
        }
        means = {}
        for name in dict.fromkeys(name for record in records.values() for name in record):
            values = {client: float(record[name]) for client, record in records.items() if name in record}  # type: ignore[arg-type]
            task = task_of(self._scenario, round)
            means[f"train/{name}"] = self._record(round, "train", name, values, task=task)
        return means

    def _record_curves(self, round: int, replies: Mapping[int, Message]) -> None:
        """Record the accuracy after each local epoch, where clients measured it."""
        for client, reply in replies.items():
            if msg.CURVES not in reply.content:
                continue
            task = task_of(self._scenario, round)
            curves: Any = reply.content.config_records[msg.CURVES]
            for split, curve in curves.items():
                for epoch, accuracy in enumerate(curve, start=1):
                    self._recorder.epoch(
                        accuracy, round=round, client=client, task=task, epoch=epoch, split=split
                    )

    def _record(
        self, round: int, split, metric: str, values: Mapping[int, float], task: int | None = None
    ) -> float:
        """Record one metric of every client, in client order, then the federation's mean; return the mean.

        Poisoned clients are recorded and left out of the mean, unless there are no others.
        """
        for client in sorted(values):
            self._recorder.metric(metric, values[client], round=round, client=client, split=split, task=task)
        counted = sorted(values.keys() - self._poisoned) or sorted(values)
        mean = float(np.mean([values[client] for client in counted]))
        self._recorder.metric(metric, mean, round=round, split=split, task=task)
        return mean

    # Messages -----------------------------------------------------------------------------------------

    def _exchange(self, round: int, phase: str, requests: Iterable[Message]) -> dict[int, Message]:
        """Send the messages of a phase, record what they cost, and return the replies (see `_send`)."""
        sent = list(requests)
        started = time.perf_counter()
        replies = self._send(round, phase, sent)
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

    def _send(self, round: int, phase: str, messages: Iterable[Message]) -> dict[int, Message]:
        """Send messages and return the replies by client, in client order.

        Raises:
            RunFailed: A client failed, or did not answer.
            Interrupted: The actors were stopped together with the run.
            UserError: A client found that the scenario is to blame.
        """
        client_of_node = {node: client for client, node in self._node_of_client.items()}
        sent = sorted(messages, key=lambda message: client_of_node[message.metadata.dst_node_id])
        if hasattr(self._grid, "on_reply"):
            self._grid.on_reply = lambda done, total: self._observer.phase(round, phase, done, total)
        self._observer.phase(round, phase, 0, len(sent))
        replies = {client_of_node[r.metadata.src_node_id]: r for r in self._grid.send_and_receive(sent)}
        replies = {client: replies[client] for client in sorted(replies)}
        failed = {client: reply for client, reply in replies.items() if reply.has_error()}
        if failed:
            # What was lost because another client took its actor down is not where the trouble lies.
            causes = [client for client, reply in failed.items() if reply.error.code != msg.NOT_HANDLED]
            client = (causes or list(failed))[0]
            if failed[client].error.code == msg.CLIENT_DIED and self._session.stop_requested():
                # Whoever signals the whole process group (timeout, a batch system) stops Ray's processes too.
                raise Interrupted(f"stopped in round {round}; the last checkpoint is saved")
            raise failure_of(failed[client], client, round, self._session.folder)
        for message in sent:
            client = client_of_node[message.metadata.dst_node_id]
            if client not in replies:
                raise RunFailed(f"no reply to the {phase} message", client=client, round=round)
        return replies

    def _identify(self) -> dict[int, int]:
        """Ask every node which client it simulates: on Flower's runtimes node ids say nothing."""
        expected = self._scenario.data.clients
        nodes = _wait_for_nodes(self._grid, expected)
        replies = self._grid.send_and_receive([Message(RecordDict(), node, msg.IDENTIFY) for node in nodes])
        node_of_client = {}
        for reply in replies:
            if reply.has_error():
                raise RunFailed(first_line(reply))
            node_of_client[msg.sender(reply)] = reply.metadata.src_node_id
        if sorted(node_of_client) != list(range(expected)):
            raise UserError(
                f"the federation has {len(nodes)} nodes for {expected} clients; give it one node per client"
                f" (Flower: num-supernodes={expected})",
                key="data.clients",
            )
        return dict(sorted(node_of_client.items()))

    # Checkpoints --------------------------------------------------------------------------------------

    def _save(self, round: int, store: CheckpointStore) -> None:
        started = time.perf_counter()
        nodes = [self._node_of_client[client] for client in sorted(self._changed)]
        replies = self._send(round, "save", [Message(RecordDict(), node, msg.EXPORT_STATE) for node in nodes])
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
        self._send(checkpoint.round, "restore", requests)


def _wait_for_nodes(grid: Grid, expected: int, patience: float = 60.0) -> list[int]:
    """Return the grid's nodes as soon as there are enough of them, or after `patience` seconds."""
    deadline = time.monotonic() + patience
    while len(nodes := sorted(grid.get_node_ids())) < expected and time.monotonic() < deadline:
        time.sleep(0.5)
    return nodes


def _with_prefix(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
