"""From the rows of a run's `metrics.jsonl` to what the continual metrics take.

The stream is in lockstep: task i is learned in rounds i·P + 1 … (i + 1)·P, where P is the number of rounds
per task, and a row's task is that position in the stream. Round 0 is the untrained model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fedkd.continual.metrics import Array

Row = Mapping[str, Any]
"""One line of `metrics.jsonl`: round, client, task, split, metric and value."""


def accuracy_matrix(
    rows: Iterable[Row], *, metric: str, split: str, client: int | None, tasks: int, rounds_per_task: int
) -> tuple[Array, Array]:
    """Return the accuracy matrix of one client, or of the federation's mean, and its untrained accuracies.

    R[i, j] is the value for task j in round (i + 1)·P, the last in which task i is learned; b[j] is the value
    in round 0. What was not measured, or was recorded as null, is NaN.

    Args:
        rows: Rows of `metrics.jsonl`, in any order; those of other metrics, splits, clients, or of no task
            are skipped.
        metric: Name of the accuracy, e.g. `"accuracy_task_incremental"`.
        split: Samples it was measured on: `"local"` or `"global"`.
        client: Client index; None: the federation's mean.
        tasks: Number of tasks T.
        rounds_per_task: Rounds P spent on each task.

    Returns:
        R `[T, T]` and b `[T]`.

    Raises:
        ValueError: `tasks` or `rounds_per_task` is below 1, a row's task is not below `tasks`, or a value was
            recorded twice.
    """
    _at_least_one("tasks", tasks)
    _at_least_one("rounds_per_task", rounds_per_task)
    values = _values(rows, metric=metric, split=split, client=client)
    beyond = [task for _, task in values if not 0 <= task < tasks]
    if beyond:
        raise ValueError(f"a row is about task {beyond[0]}, but the stream has {tasks} tasks, counted from 0")
    # Row 0 is the untrained model, row i + 1 is R[i].
    stacked = np.full((tasks + 1, tasks), np.nan)
    for (round, task), value in values.items():
        learned, rest = divmod(round, rounds_per_task)
        if rest == 0 and 0 <= learned <= tasks:
            stacked[learned, task] = value
    return stacked[1:].copy(), stacked[0].copy()


def learning_curve(
    rows: Iterable[Row], *, metric: str, split: str, client: int | None, task: int, rounds_per_task: int
) -> Array:
    """Return the accuracy on a task while that task is being learned, round by round, for `learning_area`.

    The curve starts where the task starts, at the end of round task·P (round 0 for the first task), and ends
    with the task's last round, (task + 1)·P: element r is the value after r rounds of learning the task, and
    the last one is R[task, task]. What was not measured, or was recorded as null, is NaN: for the area of a
    run evaluated every few rounds, pass every few elements of the curve.

    Args:
        rows: Rows of `metrics.jsonl`, in any order; those of other metrics, splits, clients or tasks are
            skipped.
        metric: Name of the accuracy, e.g. `"accuracy_task_incremental"`.
        split: Samples it was measured on: `"local"` or `"global"`.
        client: Client index; None: the federation's mean.
        task: Task index, 0-based.
        rounds_per_task: Rounds P spent on each task.

    Returns:
        `[P + 1]`.

    Raises:
        ValueError: `task` is negative, `rounds_per_task` is below 1, or a value was recorded twice.
    """
    if task < 0:
        raise ValueError(f"task must be ≥ 0, got {task}")
    _at_least_one("rounds_per_task", rounds_per_task)
    values = _values(rows, metric=metric, split=split, client=client)
    start = task * rounds_per_task
    return np.array(
        [values.get((start + r, task), np.nan) for r in range(rounds_per_task + 1)], dtype=np.float64
    )


def _values(
    rows: Iterable[Row], *, metric: str, split: str, client: int | None
) -> dict[tuple[int, int], float]:
    """Return the value of each (round, task) of one metric, split and client."""
    values: dict[tuple[int, int], float] = {}
    for row in rows:
        if (row["metric"], row["split"], row["client"]) != (metric, split, client) or row["task"] is None:
            continue
        key = (row["round"], row["task"])
        if key in values:
            raise ValueError(f"{metric} of task {key[1]} is recorded twice in round {key[0]} ({split})")
        values[key] = math.nan if row["value"] is None else float(row["value"])
    return values


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be ≥ 1, got {value}")
