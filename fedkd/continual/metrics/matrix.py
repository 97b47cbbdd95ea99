"""Accuracy matrices and learning curves from the rows of a run's `metrics.jsonl`.

A client learns tasks in its own order and at its own times (`TaskHistory`). A row's task is a place in the
stream. Round 0 is the untrained model.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fedkd.continual.metrics.metrics import Array
from fedkd.continual.task_history import TaskHistory

Row = Mapping[str, Any]
"""One line of `metrics.jsonl`: round, client, task, split, metric and value."""


def accuracy_matrix(
    rows: Iterable[Row], history: TaskHistory, *, metric: str, split: str, client: int | None
) -> tuple[Array, Array]:
    """Return R `[T, T]` and b `[T]` of one client, or of the federation's mean (client None).

    R[i, j] is the value for the client's j-th task in the last round of its i-th; b[j] is that of round 0.
    Missing or null values are NaN. Other rows are skipped in any order. `metric` is an accuracy such as
    `"accuracy_task_incremental"`. A value recorded twice raises `ValueError`.
    """
    values = _values(rows, metric=metric, split=split, client=client)
    # Row 0 is the untrained model, row i + 1 is R[i].
    stacked = np.array(
        [[values.get((round, task), np.nan) for task in history.tasks] for round in (0, *history.ends)],
        dtype=np.float64,
    )
    return stacked[1:].copy(), stacked[0].copy()


def learning_curve(
    rows: Iterable[Row], history: TaskHistory, *, metric: str, split: str, client: int | None, place: int
) -> Array:
    """Return the accuracy on a task while it is learned, `[P + 1]` for P rounds, for `learning_area`.

    Element r is the value after r rounds of the task, the last is R[place, place]; missing values are NaN.
    `place` is the client's task, 0-based. Unknown tasks and values recorded twice raise `ValueError`.
    """
    if not 0 <= place < len(history.tasks):
        raise ValueError(f"place must be in 0..{len(history.tasks) - 1}, got {place}")
    values = _values(rows, metric=metric, split=split, client=client)
    rounds = range(history.firsts[place] - 1, history.ends[place] + 1)
    task = history.tasks[place]
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
