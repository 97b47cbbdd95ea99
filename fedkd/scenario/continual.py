"""The `[continual]` section of a scenario: tasks and learner."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fedkd.scenario.sections import PositiveInt, Section

MAX_TASKS = 10_000
ClassList = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
"""Labels of the classes of one task."""


class TaskStream(Section):
    """The stream of tasks that every client learns."""

    kind: Literal["split", "permuted", "rotated", "overlapping", "datasets"] = "split"
    """Content of a task. `split`: a group of classes; `permuted`: a fixed permutation of the pixels;
    `rotated`: a rotation angle; `overlapping`: a window of classes; `datasets`: a data set."""
    count: Annotated[int, Field(ge=1, le=MAX_TASKS)] | None = None
    """Number of tasks; required by `overlapping`. Absent: 5, or one per entry of `datasets` or `classes`."""
    classes: Annotated[list[ClassList], Field(min_length=1)] | None = None
    """Labels of every task's classes (`split`, `overlapping`), in learning order. Only `overlapping` allows a
    class in several tasks. Absent: set by the keys below."""
    first_classes: PositiveInt | None = None
    """Number of classes of the first task (`split`); the other tasks share the rest or have
    `classes_per_task`. Absent: as many as the others."""
    classes_per_task: PositiveInt | None = None
    """Number of classes of a task. Absent: `split` divides them evenly; an `overlapping` window has 4."""
    stride: PositiveInt | None = None
    """Classes between the starts of two windows (`overlapping`); absent: half a window."""
    class_order: Literal["sorted", "shuffled"] = "sorted"
    """Order of the classes in `split` and `overlapping`; `shuffled` draws it from `class_seed`."""
    class_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of a `shuffled` class order, e.g. one for all seeds of a bench. Absent: the scenario's seed."""
    blur: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of a task's training samples from the classes of other tasks, evenly from each ("blurry" streams;
    `split`, head `class`). Test sets have only the task's classes."""
    boundaries: bool = True
    """Announce the begin and end of tasks to learners. `false` needs a learner without task boundaries
    (`naive`, `der`, `der++`, `supsup` with inferred tasks) and shared outputs. Strategies still fuse by
    task."""
    permute_first: bool = False
    """Permute the pixels of the first task too (`permuted`)."""
    max_angle: Annotated[float, Field(gt=0.0, le=360.0)] = 180.0
    """Upper bound in degrees of the angles of `rotated` tasks, which are evenly spaced from 0."""
    datasets: list[str] = []
    """Names of the data sets (`datasets`), in learning order; empty: `data.dataset` alone."""
    shape: list[PositiveInt] | None = None
    """Channels, height and width of the samples of all `datasets`; absent: those of the first."""
    order: Literal["same", "shuffled", "overlapping", "file"] = "same"
    """Order of a client's tasks. `same`: one order for all clients; `shuffled`: drawn per client;
    `overlapping`: `tasks_per_client` tasks drawn per client, some shared with others; `file`: by the
    `schedule`."""
    tasks_per_client: PositiveInt | None = None
    """Number of tasks that a client learns (`overlapping` order); absent: half of them, rounded up."""
    visits: Annotated[int, Field(ge=1, le=1000)] = 1
    """Passes of each client through its tasks, always in the same order."""
    pace: Literal["lockstep", "groups", "uniform", "poisson", "file"] = "lockstep"
    """Time that clients spend on a task. `lockstep`: `rounds_per_task` for all; `groups`, `uniform`: a
    number of rounds per group or client; `poisson`: a random number of rounds, drawn per client and task,
    with mean `rounds_per_task`; `file`: by the `schedule`."""
    groups: PositiveInt | None = None
    """Number of equally large groups of clients (`groups`); absent: 2."""
    pace_range: list[Annotated[int, Field(ge=1, le=10**6)]] | None = None
    """Rounds per task of the fastest and the slowest clients. `groups` are evenly spaced between them;
    `uniform` draws each client uniformly. Absent: `rounds_per_task` and three times as many."""
    max_lag: PositiveInt | None = None
    """Most tasks between the fastest and the slowest client; faster clients wait. Absent: no limit."""
    schedule: str | None = None
    """JSON file of every client's tasks and rounds, in the format of a run's `schedule.json` (`file`)."""


class Continual(Section):
    """Continual learning: every client learns a stream of tasks.

    All other keys are hyper-parameters of the learner (`strength`, `density`, …).
    """

    model_config = ConfigDict(extra="allow")

    learner: str = "naive"
    """Name of a learner, or a plug-in as `"pkg.mod:Class"`."""
    tasks: TaskStream = TaskStream()
    head: Literal["task", "domain", "class"] | None = None
    """Outputs of the model. `task`: separate for each task; `domain`: shared by all tasks; `class`: one for
    each class of all tasks. Absent: `domain` for `permuted` and `rotated`, else `task`."""
    rounds_per_task: PositiveInt = 1
    """Federated rounds of each task; `rounds` is the number of tasks times this."""
    online: bool = False
    """Train on each sample once: the rounds of a task divide its samples, with one epoch each. Learners may
    replay stored samples."""
    evaluate_without_task: bool = True
    """Also test models without the task given. Learners that infer the task need one pass per task: with tens
    of tasks, testing takes longer than training."""
    evaluate_epochs: bool = False
    """Test each client on its current task after every local epoch, for learning curves."""
