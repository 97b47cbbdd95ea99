"""Results of a run over a stream: accuracy matrices and metrics of every client."""

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import nan
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedkd.continual.metrics.matrix import Row, accuracy_matrix, learning_curve
from fedkd.continual.metrics.metrics import Array, epochs_to_90, mean_or_nan, summarise
from fedkd.continual.task_history import Course, TaskHistory, early_and_late, learned_tasks
from fedkd.scenario import (
    TASK_GIVEN,
    TASK_INFERENCE_RATE,
    Protocol,
    Scenario,
    accuracy_name,
    evaluation_protocols,
    main_protocol,
    task_count,
)

Split = Literal["local", "global"]
PerClient = Mapping[int, float]

SPLITS: tuple[Split, Split] = ("local", "global")


@dataclass(frozen=True, eq=False)
class ProtocolOutcome:
    """Accuracies and metrics under one protocol on one split.

    Attributes:
        R: The federation's mean accuracy on task j after learning task i, `[T, T]`. It is recorded if all
            clients learn the same tasks together; else it is the mean of the counted clients' matrices.
        b: The same of the untrained models, `[T]`.
        clients: R and b of every client, its tasks in the order in which it learned them.
        metrics: Every metric of every client, by name, over the tasks that it learned.
    """

    protocol: Protocol
    split: Split
    R: Array
    b: Array
    clients: Mapping[int, tuple[Array, Array]]
    metrics: Mapping[int, Mapping[str, float]]


@dataclass(frozen=True, eq=False)
class StreamOutcome:
    """Accuracies, metrics and costs of a run over a stream of tasks.

    Attributes:
        evaluation: The protocol that the scenario's head is made for.
        tests: One per protocol and split.
        costs: `stored_bytes`, `stored_bytes_per_task` and `peak_bytes` of every client's learner at the end.
        counted: Clients that count in means over clients.
        in_step: True if all learned the same at the same time.
        learned: Learned tasks of every client, N times `[T]`; empty: all.
    """

    tasks: int
    evaluation: Protocol
    tests: tuple[ProtocolOutcome, ...]
    costs: Mapping[str, PerClient]
    counted: frozenset[int]
    histories: tuple[TaskHistory, ...]
    in_step: bool
    learned: Sequence[NDArray[np.bool_]] = ()

    def test(self, protocol: Protocol, split: Split) -> ProtocolOutcome:
        """Return the results under a protocol on a split."""
        return next(test for test in self.tests if (test.protocol, test.split) == (protocol, split))

    @cached_property
    def protocols(self) -> tuple[Protocol, ...]:
        """The protocols; the one with given tasks comes first."""
        return tuple(dict.fromkeys(test.protocol for test in self.tests))

    def values(self, test: ProtocolOutcome, name: str) -> dict[int, float]:
        """Return a metric of the counted clients, in client order; NaN: not measured."""
        return {client: test.metrics[client][name] for client in sorted(self.counted & test.metrics.keys())}

    def figures(self) -> dict[str, dict[int, float]]:
        """Return all figures of the counted clients, by name.

        Plain names (`bwt`) are of the scenario's own protocol on the common test sets, `_local` ones on each
        client's own. Names with a protocol are on the common test sets.
        """
        main = self.test(self.evaluation, "global")
        found = {name: self.values(main, name) for name in _names(main)}
        for name, costs in self.costs.items():
            found[name] = {client: costs[client] for client in sorted(self.counted & costs.keys())}
        for protocol in self.protocols:
            test = self.test(protocol, "global")
            found |= {f"{name}_{protocol}": self.values(test, name) for name in _names(test)}
        local = self.test(self.evaluation, "local")
        found |= {f"{name}_local": self.values(local, name) for name in _names(local)}
        for split in reversed(SPLITS):
            unknown, end = self.test(self.protocols[-1], split), "" if split == "global" else "_local"
            if TASK_INFERENCE_RATE in _names(unknown):
                found[TASK_INFERENCE_RATE + end] = self.values(unknown, TASK_INFERENCE_RATE)
        return found


def _names(test: ProtocolOutcome) -> Sequence[str]:
    return list(next(iter(test.metrics.values()), {}))


def stream_outcome(
    rows: Iterable[Row],
    scenario: Scenario,
    courses: Sequence[Course],
    *,
    epochs: Iterable[Row] = (),
    counted: Collection[int] | None = None,
    models: Sequence[Hashable] | None = None,
    joint: StreamOutcome | None = None,
    single: StreamOutcome | None = None,
) -> StreamOutcome:
    """Return the outcome of a run, from its records.

    The scenario's own protocol has further figures:

    - `learning_area`, `epochs_to_90` and `auc` need accuracies before a task's first epoch and after each
      one. A client that missed an epoch of a task has none of them.
    - `temporal_forgetting` and `spatial_forgetting` are the mean drops on learned tasks j < T−1, by learning
      later tasks and by fusion. They add up to `forgetting_first_last`. Each may exceed ±1, since they can
      compensate.
    - `rounds_to_90` is the mean number of rounds until 90 % of a learned task's last accuracy.
      `rounds_to_90_early` covers tasks that no client began earlier, `rounds_to_90_late` tasks that others
      began earlier and none later. They need an evaluation every round.
    - `task_inference_rate` is how often the learner infers the right task at the end, the mean over tasks.

    A client has learned a task if it, or a client with the same model, trained in one of the task's rounds.

    Args:
        rows: Rows of `metrics.jsonl`, of the whole run.
        courses: Every client's tasks, each with the first and the last round spent on it.
        epochs: Rows of `epochs.jsonl`.
        counted: Clients that count in means over clients; None: all of them.
        models: The model of each client, `[N]`: equal entries are one and the same; None: each its own.
        joint: Outcome of joint training on the same stream, for `intransigence`.
        single: Outcome of learning each task alone on the same stream, for `gain_over_single`.
    """
    everyone = range(scenario.data.clients)
    tasks, main = task_count(scenario), main_protocol(scenario)
    histories, in_step = tuple(map(TaskHistory.of, courses)), len(set(map(tuple, courses))) == 1
    counted = frozenset(everyone if counted is None else counted)
    # Grouped once: each client's matrix would otherwise search the rows of all clients.
    recorded: dict[tuple[str, str, int | None], list[Row]] = defaultdict(list)
    steps: list[Row] = []
    for row in rows:
        if row["task"] is not None:
            recorded[row["metric"], row["split"], row["client"]].append(row)
        if (row["metric"], row["split"]) == ("loss", "train"):
            steps.append(row)
    early, late = early_and_late(histories)
    learned = learned_tasks(steps, courses, histories, models)
    trained: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in epochs:
        trained[row["split"], row["client"]].append(row)

    def matrix(protocol: Protocol, split: Split, client: int | None) -> tuple[Array, Array]:
        metric = accuracy_name(protocol)
        return accuracy_matrix(
            recorded[metric, split, client], histories[client or 0], metric=metric, split=split, client=client
        )

    def rate(split: Split, client: int) -> dict[str, float]:
        """Return the mean rate of correctly inferred tasks at the end; nothing without inference."""
        if not recorded[TASK_INFERENCE_RATE, split, None]:
            return {}
        of_client = recorded[TASK_INFERENCE_RATE, split, client]
        at_end = {row["task"]: row["value"] for row in of_client if row["round"] == scenario.rounds}
        own = histories[client].tasks
        rates = [nan if (value := at_end.get(task)) is None else value for task in own]
        return {TASK_INFERENCE_RATE: float(np.mean(rates))}

    def metrics(protocol: Protocol, split: Split, client: int, R: Array, b: Array) -> dict[str, float]:
        upper, alone = _learned(joint, protocol, split, client), _learned(single, protocol, split, client)
        own = learned[client]
        inferred = {} if protocol == TASK_GIVEN else rate(split, client)
        if protocol != main:
            return summarise(R, b, joint=upper, single=alone, learned=own) | inferred
        epochs, taught = scenario.training.local_epochs, histories[client]
        curves = _curves(trained[split, client], taught, epochs, R, b) if trained else None
        drops = {
            cause: _total_drop(recorded[cause, split, client], taught, R, own)
            for cause in ("temporal_forgetting", "spatial_forgetting")
        }
        name = accuracy_name(main)
        curve = partial(learning_curve, recorded[name, split, client], taught, metric=name, split=split)
        rounds = np.array([epochs_to_90(curve(client=client, place=place)) for place in range(len(R))])
        pace = {
            "rounds_to_90": mean_or_nan(rounds[own]),
            "rounds_to_90_early": mean_or_nan(rounds[own & early[client]]),
            "rounds_to_90_late": mean_or_nan(rounds[own & late[client]]),
        }
        found = summarise(R, b, joint=upper, single=alone, curves=curves, learned=own)
        return found | drops | pace | inferred

    def tested(protocol: Protocol, split: Split) -> ProtocolOutcome:
        clients = {client: matrix(protocol, split, client) for client in everyone}
        found = {client: metrics(protocol, split, client, R, b) for client, (R, b) in clients.items()}
        mean = matrix(protocol, split, None) if in_step else _mean([clients[c] for c in sorted(counted)])
        return ProtocolOutcome(protocol, split, *mean, clients, found)

    tests = tuple(tested(protocol, split) for protocol in evaluation_protocols(scenario) for split in SPLITS)
    stored, most = (
        {client: _last(recorded[name, "train", client]) for client in everyone}
        for name in ("stored_bytes", "peak_bytes")
    )
    per_task = {client: value / len(histories[client].tasks) for client, value in stored.items()}
    costs = {"stored_bytes": stored, "stored_bytes_per_task": per_task, "peak_bytes": most}
    return StreamOutcome(tasks, main, tests, costs, counted, histories, in_step, learned)


def _mean(matrices: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Return the mean of R and b over clients, each entry over its measured values."""
    tasks = max(len(b) for _, b in matrices)
    total, number = np.zeros((tasks + 1, tasks)), np.zeros((tasks + 1, tasks))
    for R, b in matrices:
        own = len(b)
        measured = np.vstack([b, R])
        total[: own + 1, :own] += np.nan_to_num(measured)
        number[: own + 1, :own] += ~np.isnan(measured)
    with np.errstate(invalid="ignore"):
        mean = total / number
    return mean[1:], mean[0]


def _learned(run: StreamOutcome | None, protocol: Protocol, split: Split, client: int) -> Array | None:
    """Return a client's accuracy on each task right after learning it, `[T]`; None without a run."""
    return None if run is None else np.diagonal(run.test(protocol, split).clients[client][0])


def _curves(epochs: Sequence[Row], history: TaskHistory, each: int, R: Array, b: Array) -> list[Array]:
    """Return a client's learning curve on every task, [P · E + 1]; NaN where it did not train or measure.

    `each` is the number of epochs E of a round.
    """
    curves = []
    for place, first in enumerate(history.firsts):
        rounds = history.ends[place] - first + 1
        curves.append(np.full(rounds * each + 1, nan))
        curves[-1][0] = R[place - 1, place] if place else b[0]
    for row in epochs:
        place = history.place(row["task"])
        if row["value"] is not None and history.firsts[place] <= row["round"] <= history.ends[place]:
            curves[place][(row["round"] - history.firsts[place]) * each + row["epoch"]] = row["value"]
    return curves


def _total_drop(drops: Sequence[Row], history: TaskHistory, R: Array, learned: NDArray[np.bool_]) -> float:
    """Return the mean over learned tasks j < T−1 of the sum of the drops on task j; NaN without any."""
    totals = np.zeros(len(R) - 1)
    if not drops or not len(totals):
        return nan
    for row in drops:
        place = history.place(row["task"])
        if place < len(totals):
            totals[place] += nan if row["value"] is None else row["value"]
    # A task without test samples is not a task without a drop.
    totals[np.isnan(R[-1, :-1])] = nan
    return mean_or_nan(totals[learned[:-1]])


def _last(rows: Sequence[Row]) -> float:
    """Return the value of the last round; NaN where there is none."""
    if not rows:
        return nan
    value = max(rows, key=lambda row: row["round"])["value"]
    return nan if value is None else float(value)
