"""A client's course over a run: its tasks, and which came early or late."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Course = Sequence[tuple[int | None, int, int]]
"""A client's tasks, each with its first and last round."""


@dataclass(frozen=True)
class TaskHistory:
    """The T tasks of a client, in order of learning.

    Attributes:
        tasks: Their places in the stream, `[T]`.
        firsts: The first round of each task, `[T]`.
        ends: The round at the end of each task, `[T]`. Where tasks come back, the first visit counts; the
            last task ends with the client's last round.
    """

    tasks: tuple[int, ...]
    firsts: tuple[int, ...]
    ends: tuple[int, ...]

    @staticmethod
    def of(course: Course) -> TaskHistory:
        """Return the history of a course."""
        met: dict[int, tuple[int, int]] = {}
        for task, first, last in course:
            if task is not None:
                met.setdefault(task, (first, last))
        firsts, ends = zip(*met.values(), strict=True)
        return TaskHistory(tuple(met), firsts, (*ends[:-1], course[-1][2]))

    def place(self, task: int) -> int:
        """Return the place of a task in the client's course; −1: it is absent."""
        return self.tasks.index(task) if task in self.tasks else -1


def learned_tasks(
    steps: Iterable[Mapping[str, Any]],
    courses: Sequence[Course],
    history: Sequence[TaskHistory],
    models: Sequence[Hashable] | None = None,
) -> list[NDArray[np.bool_]]:
    """Return the learned tasks of each client, N times `[T]`.

    `steps` are rows of local training losses: a client trained in their rounds. `models` is the model of each
    client, `[N]`: clients with the same model count as one learner; None: each its own.
    """
    stepped: list[set[int | None]] = [set() for _ in courses]
    for row in steps:
        if row["client"] is not None:
            course = courses[row["client"]]
            stepped[row["client"]].update(task for task, a, b in course if a <= row["round"] <= b)
    if models is not None:
        of_model: dict[Hashable, set[int | None]] = defaultdict(set)
        for model, own in zip(models, stepped, strict=True):
            of_model[model] |= own
        stepped = [of_model[model] for model in models]
    pairs = zip(stepped, history, strict=True)
    return [np.array([task in own for task in taught.tasks]) for own, taught in pairs]


def early_and_late(history: Sequence[TaskHistory]) -> tuple[list[NDArray[np.bool_]], list[NDArray[np.bool_]]]:
    """Return each client's tasks where it is among the first, and among the last, N times `[T]` each.

    If all begin a task in the same round, all are first and none is last.
    """
    begins: dict[int, list[int]] = defaultdict(list)
    for own in history:
        for task, first in zip(own.tasks, own.firsts, strict=True):
            begins[task].append(first)
    early, last = [], []
    for own in history:
        firsts = np.array(own.firsts)
        early.append(firsts == [min(begins[task]) for task in own.tasks])
        last.append(firsts == [max(begins[task]) for task in own.tasks])
    return early, [at_last & ~at_first for at_last, at_first in zip(last, early, strict=True)]
