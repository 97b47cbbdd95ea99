"""From the rows of a run's `metrics.jsonl` to what the continual metrics take.

A client learns tasks in an order and at times of its own, its `Lessons`; a row's task is the task's place in
the stream. Round 0 is the untrained model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fedkd.continual.lessons import Lessons
from fedkd.continual.metrics import Array

Row = Mapping[str, Any]
"""One line of `metrics.jsonl`: round, client, task, split, metric and value."""


def accuracy_matrix(
    rows: Iterable[Row], lessons: Lessons, *, metric: str, split: str, client: int | None
) -> tuple[Array, Array]:
    """Return the accuracy matrix of one client, or of the federation's mean, and its untrained accuracies.

    R[i, j] is the value for the client's j-th task in the round in which it has learned its i-th; b[j] is the
    value in round 0. What was not measured, or was recorded as null, is NaN.

    Args:
        rows: Rows of `metrics.jsonl`, in any order; those of other metrics, splits, clients, or of no task
            are skipped.
        lessons: What the client learns; of the federation's mean, what all do.
        metric: Name of the accuracy, e.g. `"accuracy_task_incremental"`.
        split: Samples it was measured on: `"local"` or `"global"`.
        client: Client index; None: the federation's mean.

    Returns:
        R `[T, T]` and b `[T]`.

    Raises:
        ValueError: A value was recorded twice.
    """
    values = _values(rows, metric=metric, split=split, client=client)
    # Row 0 is the untrained model, row i + 1 is R[i].
    stacked = np.array(
        [[values.get((round, task), np.nan) for task in lessons.tasks] for round in (0, *lessons.ends)],
        dtype=np.float64,
    )
    return stacked[1:].copy(), stacked[0].copy()


def learning_curve(
    rows: Iterable[Row], lessons: Lessons, *, metric: str, split: str, client: int | None, place: int
) -> Array:
    """Return the accuracy on a task while that task is being learned, round by round, for `learning_area`.

    The curve starts just before the task is begun, and ends where it has been learned: element r is the value
    after r rounds, and the last one is R[place, place]. What was not measured, or was recorded as null, is
    NaN: for the area of a run evaluated every few rounds, pass every few elements of the curve.

    Args:
        rows: Rows of `metrics.jsonl`, in any order; those of other metrics, splits, clients or tasks are
            skipped.
        lessons: What the client learns.
        metric: Name of the accuracy, e.g. `"accuracy_task_incremental"`.
        split: Samples it was measured on: `"local"` or `"global"`.
        client: Client index; None: the federation's mean.
        place: Which of the client's tasks, 0-based.

    Returns:
        `[P + 1]` for a task of P rounds.

    Raises:
        ValueError: The client has no such task, or a value was recorded twice.
    """
    if not 0 <= place < len(lessons.tasks):
        raise ValueError(f"place must be in 0..{len(lessons.tasks) - 1}, got {place}")
    values = _values(rows, metric=metric, split=split, client=client)
    rounds = range(lessons.firsts[place] - 1, lessons.ends[place] + 1)
    task = lessons.tasks[place]
    return np.array([values.get((round, task), np.nan) for round in rounds], dtype=np.float64)


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
