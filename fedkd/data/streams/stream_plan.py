"""The plan of a task stream: the classes of each task, and their output units.

Heads follow the three scenarios of van de Ven & Tolias (2019), "Three scenarios for continual
learning", arXiv:1904.07734: task-, domain- and class-incremental learning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fedkd.errors import UserError, refuse_if
from fedkd.randomness import numpy_generator
from fedkd.scenario import DEFAULT_TASK_COUNT, HeadKind, TaskStream

DEFAULT_WINDOW = 4


def class_groups(tasks: TaskStream, classes: int, *, seed: int) -> tuple[tuple[int, ...], ...]:
    """Return the classes of every task of a `split` or `overlapping` stream, in label order."""
    if tasks.classes is not None:
        for task, listed in enumerate(tasks.classes):
            for place, label in enumerate(listed):
                told = f"must be ≤ {classes - 1}, the last of the data's {classes} classes, got {label}"
                refuse_if(label >= classes, told, f"continual.tasks.classes.{task}.{place}")
        return tuple(map(tuple, tasks.classes))
    order = np.arange(classes)
    if tasks.class_order == "shuffled":
        own = seed if tasks.class_seed is None else tasks.class_seed
        order = numpy_generator(own, "class-order").permutation(classes)
    windows = _windows(tasks, classes) if tasks.kind == "overlapping" else _slices(tasks, classes)
    return tuple(tuple(order[start:stop].tolist()) for start, stop in windows)


def _windows(tasks: TaskStream, classes: int) -> list[tuple[int, int]]:
    width = tasks.classes_per_task or DEFAULT_WINDOW
    stride = tasks.stride or max(width // 2, 1)
    told = f"must be ≤ {classes}, the number of classes, got {width}"
    refuse_if(width > classes, told, "continual.tasks.classes_per_task")
    fitting = (classes - width) // stride + 1
    count = tasks.count or fitting
    told = f"must be ≤ {fitting}, the windows of {width} classes with stride {stride} that fit"
    refuse_if(count > fitting, f"{told} {classes} classes, got {count}", "continual.tasks.count")
    return [(start, start + width) for start in range(0, count * stride, stride)]


def _slices(tasks: TaskStream, classes: int) -> list[tuple[int, int]]:
    count, first, width = tasks.count or DEFAULT_TASK_COUNT, tasks.first_classes, tasks.classes_per_task
    told = f"must be < {classes}, the number of classes, to leave some to other tasks, got {first}"
    refuse_if(first is not None and first >= classes, told, "continual.tasks.first_classes")
    # The classes to divide, and the tasks that share them.
    before, rest, sharing = (0, classes, count) if first is None else (1, classes - first, count - 1)
    after = "" if first is None else f" after the first {first}"
    if width is None:
        if rest % sharing:
            allowed = ", ".join(str(n + before) for n in range(1, rest + 1) if rest % n == 0)
            told = f"{rest} classes{after} do not divide evenly among {sharing} tasks; allowed:"
            raise UserError(f"{told} {allowed}, or give classes_per_task", key="continual.tasks.count")
        width = rest // sharing
    told = f"{sharing} tasks × {width} classes = {sharing * width}, but the data have {rest} classes{after};"
    refuse_if(
        sharing * width > rest, f"{told} at most {rest // width + before} tasks", "continual.tasks.count"
    )
    widths = [width] * count if first is None else [first, *[width] * sharing]
    return list(pairwise([0, *np.cumsum(widths).tolist()]))


@dataclass(frozen=True)
class Outputs:
    """The output units of a model for a stream of T tasks."""

    unit_class: tuple[int, ...]  # identity of every unit's class; two units of one class share it
    units: tuple[tuple[int, ...], ...]  # [T] tuples: the units that a task's labels index into
    own_units: tuple[tuple[int, ...], ...]
    """[T] tuples: the unit of each class that occurs in the task, in label order."""


def lay_out(head: HeadKind, classes: Sequence[Sequence[int]]) -> Outputs:
    """Give every class of every task its output unit; `classes` are [T] identities, in label order.

    With the head `task` each task has its own slice of units. With `domain` all tasks share units, the i-th
    for the i-th class of each. With `class` every class of the stream has one unit, in order of appearance,
    and every task predicts among all of them.
    """
    if head == "domain":
        most = max(map(len, classes))
        units = tuple(tuple(range(len(own))) for own in classes)
        return Outputs(tuple(range(most)), units, units)
    if head == "task":
        starts = np.cumsum([0, *map(len, classes)]).tolist()
        units = tuple(tuple(range(a, b)) for a, b in pairwise(starts))
        return Outputs(tuple(c for own in classes for c in own), units, units)
    met = tuple(dict.fromkeys(c for own in classes for c in own))
    unit = {c: place for place, c in enumerate(met)}
    everything = tuple(range(len(met)))
    own_units = tuple(tuple(unit[c] for c in own) for own in classes)
    return Outputs(met, (everything,) * len(classes), own_units)
