"""What a run over a stream of tasks reached: accuracy matrices and continual metrics of every client."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedkd.continual.matrix import Row, accuracy_matrix
from fedkd.continual.metrics import Array, summarise
from fedkd.scenario.schema import Scenario
from fedkd.scenario.stream import (
    TASK_GIVEN,
    TASK_INFERENCE_RATE,
    Protocol,
    accuracy_name,
    main_protocol,
    protocols,
    task_count,
)

Split = Literal["local", "global"]
PerClient = Mapping[int, float]

SPLITS: tuple[Split, Split] = ("local", "global")


@dataclass(frozen=True, eq=False)
class ProtocolOutcome:
    """What was reached under one protocol on one split.

    Attributes:
        protocol: Whether the task was given.
        split: The samples.
        R: The federation's mean accuracy on task j after learning task i, `[T, T]`, as it was recorded.
        b: The same of the untrained models, `[T]`.
        clients: R and b of every client.
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
    """What a run over a stream of tasks reached.

    Attributes:
        tasks: Number of tasks T.
        evaluation: The protocol that the scenario's head is made for.
        tests: One per protocol and split.
        costs: `stored_bytes`, `stored_bytes_per_task` and `peak_bytes` of every client's learner at the end.
        counted: Clients that count in means over clients.
    """

    tasks: int
    evaluation: Protocol
    tests: tuple[ProtocolOutcome, ...]
    costs: Mapping[str, PerClient]
    counted: frozenset[int]

    def test(self, protocol: Protocol, split: Split) -> ProtocolOutcome:
        """Return what was reached under a protocol on a split."""
        return next(test for test in self.tests if (test.protocol, test.split) == (protocol, split))

    @cached_property
    def protocols(self) -> tuple[Protocol, ...]:
        """The protocols, that with the task given first."""
        return tuple(dict.fromkeys(test.protocol for test in self.tests))

    def values(self, test: ProtocolOutcome, name: str) -> dict[int, float]:
        """Return a metric of the clients that count, in client order; NaN where it could not be measured."""
        return {client: test.metrics[client][name] for client in sorted(self.counted & test.metrics.keys())}

    def figures(self) -> dict[str, dict[int, float]]:
        """Return every figure of the clients that count, by a name of its own.

        Plain names (`bwt`) are those of the scenario's own protocol on the common test sets, and those with
        `_local` on each client's own; ``bwt_task_incremental`` and the like are on the common test sets.
        `task_inference_rate` is that of the test without the task, whatever the scenario's own is.
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
        for split, end in (("global", ""), ("local", "_local")):
            unknown = self.test(self.protocols[-1], split)
            if TASK_INFERENCE_RATE in _names(unknown):
                found[TASK_INFERENCE_RATE + end] = self.values(unknown, TASK_INFERENCE_RATE)
        return found


def _names(test: ProtocolOutcome) -> Sequence[str]:
    return list(next(iter(test.metrics.values()), {}))


def stream_outcome(
    rows: Iterable[Row],
    scenario: Scenario,
    *,
    epochs: Iterable[Row] = (),
    counted: Collection[int] | None = None,
    joint: StreamOutcome | None = None,
    single: StreamOutcome | None = None,
) -> StreamOutcome:
    """Return what a run reached, from what it recorded.

    The scenario's own protocol has figures that the other has not. `learning_area`, `epochs_to_90` and
    `auc` are there if accuracies were recorded after every epoch: a task's curve is the accuracy just before
    its first epoch and after each of its rounds_per_task · local_epochs; a client that missed an epoch of a
    task has none of them.
    `temporal_forgetting` and `spatial_forgetting` are the means over learned tasks j < T−1 of all drops on
    task j since it was learned: by learning later tasks and by applying guidance. Where a client measured
    both, they add up to `forgetting_first_last`; each may be beyond ±1, as one makes good what the other did.
    A client that no guidance reached has no `spatial_forgetting`.

    A client has learned a task if it took a training step in one of the task's rounds, or where weights are
    averaged, if anybody did. What is over tasks that were learned is so for every client on its own, see
    `fedkd.continual.metrics`; a task that a client missed needs no accuracies or epochs for that.

    `task_inference_rate` is there if the learner infers the task of samples that it is not told of: how often
    it is right at the end, the mean over all tasks.

    Every client is compared with itself in the reference runs: `intransigence` is there with `joint`, whose
    accuracy on task k is its R[k, k], of a model trained on tasks 0 … k; `gain_over_single` with `single`.

    Args:
        rows: Rows of `metrics.jsonl`, of the whole run.
        scenario: What was run.
        epochs: Rows of `epochs.jsonl`.
        counted: Clients that count in means over clients; None: all of them.
        joint: What joint training reached on the same stream.
        single: What learning each task alone reached on the same stream.
    """
    everyone = range(scenario.data.clients)
    tasks, main = task_count(scenario), main_protocol(scenario)
    # A matrix is asked for once per client, and would look through the rows of all others every time.
    recorded: dict[tuple[str, str, int | None], list[Row]] = defaultdict(list)
    steps: list[Row] = []
    for row in rows:
        if row["task"] is not None:
            recorded[row["metric"], row["split"], row["client"]].append(row)
        elif (row["metric"], row["split"]) == ("loss", "train"):
            steps.append(row)
    learned = _learned_tasks(steps, scenario)
    trained: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in epochs:
        trained[row["split"], row["client"]].append(row)

    def matrix(protocol: Protocol, split: Split, client: int | None) -> tuple[Array, Array]:
        assert scenario.continual is not None
        metric = accuracy_name(protocol)
        return accuracy_matrix(
            recorded[metric, split, client],
            metric=metric,
            split=split,
            client=client,
            tasks=tasks,
            rounds_per_task=scenario.continual.rounds_per_task,
        )

    def rate(split: Split, client: int) -> dict[str, float]:
        """Return how often tasks are inferred at the end, the mean over them; nothing if none ever was."""
        if not recorded[TASK_INFERENCE_RATE, split, None]:
            return {}
        of_client = recorded[TASK_INFERENCE_RATE, split, client]
        at_end = {row["task"]: row["value"] for row in of_client if row["round"] == scenario.rounds}
        rates = [nan if (value := at_end.get(task)) is None else value for task in range(tasks)]
        return {TASK_INFERENCE_RATE: float(np.mean(rates))}

    def metrics(protocol: Protocol, split: Split, client: int, R: Array, b: Array) -> dict[str, float]:
        upper, alone = _learned(joint, protocol, split, client), _learned(single, protocol, split, client)
        own = learned[client]
        inferred = {} if protocol == TASK_GIVEN else rate(split, client)
        if protocol != main:
            return summarise(R, b, joint=upper, single=alone, learned=own) | inferred
        curves = _curves(trained[split, client], scenario, R, b) if trained else None
        drops = {
            cause: _total_drop(recorded[cause, split, client], R, own)
            for cause in ("temporal_forgetting", "spatial_forgetting")
        }
        return summarise(R, b, joint=upper, single=alone, curves=curves, learned=own) | drops | inferred

    def tested(protocol: Protocol, split: Split) -> ProtocolOutcome:
        clients = {client: matrix(protocol, split, client) for client in everyone}
        found = {client: metrics(protocol, split, client, R, b) for client, (R, b) in clients.items()}
        return ProtocolOutcome(protocol, split, *matrix(protocol, split, None), clients, found)

    tests = tuple(tested(protocol, split) for protocol in protocols(scenario) for split in SPLITS)
    ends = {
        name: {client: _last(recorded[name, "train", client]) for client in everyone}
        for name in ("stored_bytes", "peak_bytes")
    }
    per_task = {client: stored / tasks for client, stored in ends["stored_bytes"].items()}
    costs = {
        "stored_bytes": ends["stored_bytes"],
        "stored_bytes_per_task": per_task,
        "peak_bytes": ends["peak_bytes"],
    }
    return StreamOutcome(tasks, main, tests, costs, frozenset(everyone if counted is None else counted))


def _learned_tasks(steps: Iterable[Row], scenario: Scenario) -> NDArray[np.bool_]:
    """Return which tasks every client learned, `[N, T]`.

    Args:
        steps: Rows of the losses of local training; those of a client say that it took a step in a round.
        scenario: What was run.
    """
    assert scenario.continual is not None
    learned = np.zeros((scenario.data.clients, task_count(scenario)), dtype=bool)
    for row in steps:
        task = (row["round"] - 1) // scenario.continual.rounds_per_task
        if row["client"] is not None and task < learned.shape[1]:
            learned[row["client"], task] = True
    if scenario.fusion.from_flower:  # everybody has the average
        learned[:] = learned.any(axis=0)
    return learned


def _learned(run: StreamOutcome | None, protocol: Protocol, split: Split, client: int) -> Array | None:
    """Return a client's accuracy on each task right after learning it, `[T]`; None without a run."""
    return None if run is None else np.diagonal(run.test(protocol, split).clients[client][0])


def _curves(epochs: Sequence[Row], scenario: Scenario, R: Array, b: Array) -> list[Array]:
    """Return a client's learning curve on every task, [P · E + 1]; NaN where it did not train or measure."""
    assert scenario.continual is not None
    rounds, length = scenario.continual.rounds_per_task, scenario.training.local_epochs
    curves = [np.full(rounds * length + 1, nan) for _ in range(len(R))]
    for task, curve in enumerate(curves):
        curve[0] = R[task - 1, task] if task else b[0]
    for row in epochs:
        if row["value"] is not None:
            curves[row["task"]][(row["round"] - 1) % rounds * length + row["epoch"]] = row["value"]
    return curves


def _total_drop(drops: Sequence[Row], R: Array, learned: NDArray[np.bool_]) -> float:
    """Return the mean over learned tasks j < T−1 of the sum of the drops on task j; NaN without any."""
    totals = np.zeros(len(R) - 1)
    if not drops or not len(totals):
        return nan
    for row in drops:
        if row["task"] < len(totals):
            totals[row["task"]] += nan if row["value"] is None else row["value"]
    # A task that the client has no test samples of has not gone without a drop.
    totals[np.isnan(R[-1, :-1])] = nan
    own = totals[learned[:-1]]
    return float(own.mean()) if len(own) else nan


def _last(rows: Sequence[Row]) -> float:
    """Return the value of the last round; NaN where there is none."""
    if not rows:
        return nan
    value = max(rows, key=lambda row: row["round"])["value"]
    return nan if value is None else float(value)
