"""The `[continual]` section of a scenario: the stream of tasks, and how it is learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fedkd.scenario.sections import PositiveInt, Section

MOST_TASKS = 10_000
ClassList = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
"""The classes of one task, by their labels."""


class TaskStream(Section):
    """The stream of tasks that every client learns."""

    kind: Literal["split", "permuted", "rotated", "overlapping", "datasets"] = "split"
    """What a task is: `split` (the classes in groups), `permuted` (one fixed permutation of the pixels),
    `rotated` (one angle), `overlapping` (windows of classes that overlap), `datasets` (one data set)."""
    count: Annotated[int, Field(ge=1, le=MOST_TASKS)] | None = None
    """Number of tasks; absent: 5, for `datasets` and lists of `classes` one each. `overlapping` windows have
    to say."""
    classes: Annotated[list[ClassList], Field(min_length=1)] | None = None
    """The classes of every task, by their labels (`split`, `overlapping`), in the order they are learned: of
    any number each. Classes may be left out; one that is in several tasks makes them `overlapping`. Absent:
    the keys below say."""
    first_classes: PositiveInt | None = None
    """Classes of the first task (`split`), such as half of them; the other tasks share out the rest, or have
    `classes_per_task` each. Absent: as many as the others."""
    classes_per_task: PositiveInt | None = None
    """Classes of a task (`split`: absent, the classes are shared out evenly; `overlapping`: the width of a
    window, 4 if absent)."""
    stride: PositiveInt | None = None
    """Classes between the starts of two windows (`overlapping`); absent: half a window."""
    class_order: Literal["sorted", "shuffled"] = "sorted"
    """Order in which `split` and `overlapping` take the classes; `shuffled` draws it from `class_seed`."""
    class_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of a `shuffled` class order, so that runs of several seeds learn the same tasks, or runs of one
    seed different ones; absent: the scenario's seed."""
    blur: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of every task's training samples that are of the classes of other tasks (`split`, with the head
    `class`), as in "blurry" streams: each task gives as many of its own to all others alike. Tests stay those
    of the task's own classes."""
    boundaries: bool = True
    """Whether learners may be told when a task begins and ends. Without, only those can be used that need not
    know (`naive`, `der`, `der++`, `supsup` that finds them), with outputs that tasks share. Strategies
    still fuse by task."""
    permute_first: bool = False
    """Whether the first of `permuted` tasks is permuted too; otherwise its pixels are where they are."""
    max_angle: Annotated[float, Field(gt=0.0, le=360.0)] = 180.0
    """Angles of `rotated` tasks are spread evenly from 0 up to this many degrees, this one left out."""
    datasets: list[str] = []
    """Names of the data sets (`datasets`), in the order they are learned; empty: `data.dataset` alone."""
    shape: list[PositiveInt] | None = None
    """Channels, height and width that the samples of all `datasets` are brought to; absent: the first's."""
    order: Literal["same", "shuffled", "overlapping", "file"] = "same"
    """Order in which each client meets the tasks: the `same` for all; `shuffled`, each client its own;
    `overlapping`, each client its own `tasks_per_client` of them, so that it shares some with others; that of
    the `schedule` (`file`)."""
    tasks_per_client: PositiveInt | None = None
    """Tasks that a client learns (`overlapping` order); absent: about half of them."""
    visits: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often each client goes through its tasks: above 1 they return, in the same order."""
    clock: Literal["lockstep", "groups", "uniform", "poisson", "file"] = "lockstep"
    """When clients move on to the next task: all at once, after `rounds_per_task` (`lockstep`); each of
    `groups` of clients at a pace of its own, or each client (`uniform`); after a number of rounds drawn for
    every client and task, `rounds_per_task` in the mean (`poisson`); as the `schedule` says (`file`)."""
    groups: PositiveInt | None = None
    """Number of groups that clients are dealt to evenly (`groups`); absent: 2."""
    pace: list[Annotated[int, Field(ge=1, le=10**6)]] | None = None
    """Rounds a task of the fastest and of the slowest: those of the groups are spread evenly between them,
    those of single clients drawn evenly (`uniform`). Absent: `rounds_per_task` and three times as many."""
    max_lag: PositiveInt | None = None
    """How many tasks the fastest client may be ahead of the slowest: who would be further ahead stays with
    its task for longer. Absent: any number."""
    schedule: str | None = None
    """JSON file with every client's tasks and rounds, as a run leaves it in `schedule.json`: for an order and
    a clock of `file`."""


class Continual(Section):
    """Continual learning: how every client learns a stream of tasks without forgetting.

    Keys that are not listed here are the learner's own (`strength`, `density`, …), checked against it.
    """

    model_config = ConfigDict(extra="allow")

    learner: str = "naive"
    """A learner of fedkd by name, or your own as `"pkg.mod:Class"`."""
    tasks: TaskStream = TaskStream()
    head: Literal["task", "domain", "class"] | None = None
    """What the outputs of the model are: each task has its own (`task`), all tasks share theirs (`domain`),
    or every class has one and competes with all others (`class`). Absent: `domain` for `permuted` and
    `rotated`, else `task`."""
    rounds_per_task: PositiveInt = 1
    """Federated rounds spent on each task; `rounds` is the number of tasks times this."""
    online: bool = False
    """Whether each sample is trained on once: the rounds of a task share out its samples, and one epoch of a
    round goes through its part. What a learner remembers may be trained on again."""
    evaluate_without_task: bool = True
    """Whether models are also tested without being told the task. For learners that infer it this costs a
    pass for every task met: with tens of tasks, more than learning them."""
    evaluate_epochs: bool = False
    """Whether a client tests itself on the current task after every local epoch, for learning curves."""
