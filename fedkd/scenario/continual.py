"""The `[continual]` section of a scenario: the stream of tasks, and how it is learned."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fedkd.scenario.sections import PositiveInt, Section

MAX_TASKS = 10_000
ClassList = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
"""The classes of one task, by their labels."""


class TaskStream(Section):
    """The stream of tasks that every client learns."""

    kind: Literal["split", "permuted", "rotated", "overlapping", "datasets"] = "split"
    """What a task is: `split` (the classes in groups), `permuted` (one fixed permutation of the pixels),
    `rotated` (one angle), `overlapping` (windows of classes that overlap), `datasets` (one data set)."""
    count: Annotated[int, Field(ge=1, le=MAX_TASKS)] | None = None
    """Number of tasks; absent: 5, or one for each of `datasets` or lists of `classes`; `overlapping` needs
    it."""
    classes: Annotated[list[ClassList], Field(min_length=1)] | None = None
    """The classes of every task, by label (`split`, `overlapping`), in the order they are learned. Classes
    may be left out; one in several tasks makes them `overlapping`. Absent: the keys below say."""
    first_classes: PositiveInt | None = None
    """Classes of the first task (`split`); the others share out the rest, or have `classes_per_task`.
    Absent: as many as the others."""
    classes_per_task: PositiveInt | None = None
    """Classes of a task; absent: `split` shares them out evenly, an `overlapping` window has 4."""
    stride: PositiveInt | None = None
    """Classes between the starts of two windows (`overlapping`); absent: half a window."""
    class_order: Literal["sorted", "shuffled"] = "sorted"
    """Order in which `split` and `overlapping` take the classes; `shuffled` draws it from `class_seed`."""
    class_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of a `shuffled` class order, which runs of several seeds may share; absent: the scenario's
    seed."""
    blur: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of a task's training samples that are of other tasks' classes ("blurry" streams; `split`, head
    `class`): each task gives equally many to all others. Tests keep to the task's own classes."""
    boundaries: bool = True
    """Whether learners are told when a task begins and ends. Without, the learner must not need it (`naive`,
    `der`, `der++`, `supsup` that finds them), and tasks share outputs. Strategies still fuse by task."""
    permute_first: bool = False
    """Whether the first of `permuted` tasks is permuted too; otherwise its pixels are where they are."""
    max_angle: Annotated[float, Field(gt=0.0, le=360.0)] = 180.0
    """Angles of `rotated` tasks are spread evenly from 0 up to this many degrees, this one left out."""
    datasets: list[str] = []
    """Names of the data sets (`datasets`), in the order they are learned; empty: `data.dataset` alone."""
    shape: list[PositiveInt] | None = None
    """Channels, height and width that the samples of all `datasets` are brought to; absent: the first's."""
    order: Literal["same", "shuffled", "overlapping", "file"] = "same"
    """Order in which a client meets the tasks: the `same` for all; `shuffled`, its own; `overlapping`, its
    own `tasks_per_client` of them, some shared with others; that of the `schedule` (`file`)."""
    tasks_per_client: PositiveInt | None = None
    """Tasks that a client learns (`overlapping` order); absent: about half of them."""
    visits: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often each client goes through its tasks: above 1 they return, in the same order."""
    pace: Literal["lockstep", "groups", "uniform", "poisson", "file"] = "lockstep"
    """When clients begin the next task: all after `rounds_per_task` (`lockstep`); each of `groups`, or
    each client (`uniform`), at its own pace; after a number of rounds drawn for every client and task,
    with mean `rounds_per_task` (`poisson`); as the `schedule` says (`file`)."""
    groups: PositiveInt | None = None
    """Number of groups that clients are dealt to evenly (`groups`); absent: 2."""
    pace_range: list[Annotated[int, Field(ge=1, le=10**6)]] | None = None
    """Rounds a task of the fastest and the slowest: groups lie evenly between them, clients are drawn
    evenly (`uniform`). Absent: `rounds_per_task` and three times as many."""
    max_lag: PositiveInt | None = None
    """Tasks that the fastest client may be ahead of the slowest; it waits with its task. Absent: any
    number."""
    schedule: str | None = None
    """JSON file with every client's tasks and rounds, as in a run's `schedule.json`, for `file`."""


class Continual(Section):
    """Continual learning: how every client learns a stream of tasks without forgetting.

    Keys that are not listed here are the learner's own (`strength`, `density`, …), checked against it.
    """

    model_config = ConfigDict(extra="allow")

    learner: str = "naive"
    """A learner of fedkd by name, or your own as `"pkg.mod:Class"`."""
    tasks: TaskStream = TaskStream()
    head: Literal["task", "domain", "class"] | None = None
    """Outputs of the model: each task has its own (`task`), all share theirs (`domain`), or every class has
    one and competes with all others (`class`). Absent: `domain` for `permuted` and `rotated`, else `task`."""
    rounds_per_task: PositiveInt = 1
    """Federated rounds spent on each task; `rounds` is the number of tasks times this."""
    online: bool = False
    """Whether each sample is trained on once: a task's rounds share out its samples, for one epoch each. A
    learner may train on remembered samples again."""
    evaluate_without_task: bool = True
    """Whether models are also tested without the task given. Learners that infer it need a pass for every
    task: with tens of tasks, more than learning them."""
    evaluate_epochs: bool = False
    """Whether a client tests itself on the current task after every local epoch, for learning curves."""
