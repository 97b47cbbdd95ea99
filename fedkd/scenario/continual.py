"""The `[continual]` section of a scenario: tasks and learner."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from fedkd.scenario.sections import PositiveInt, Section

MAX_TASKS = 10_000
ClassList = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
"""The classes of one task, by their labels."""


class TaskStream(Section):
    """The stream of tasks that every client learns."""

    kind: Literal["split", "permuted", "rotated", "overlapping", "datasets"] = "split"
    """`split`: a group of classes is a task; `permuted`: one fixed permutation of the pixels; `rotated`: one
    angle; `overlapping`: a window of classes; `datasets`: one data set."""
    count: Annotated[int, Field(ge=1, le=MAX_TASKS)] | None = None
    """Number of tasks. Absent: 5, or one for each of `datasets` or `classes`; `overlapping` needs it."""
    classes: Annotated[list[ClassList], Field(min_length=1)] | None = None
    """Labels of every task's classes (`split`, `overlapping`), in learning order. A class in several tasks
    makes them `overlapping`. Absent: the keys below decide."""
    first_classes: PositiveInt | None = None
    """Classes of the first task (`split`); the others share the rest or have `classes_per_task`. Absent:
    as many as the others."""
    classes_per_task: PositiveInt | None = None
    """Classes of a task. Absent: `split` shares them out evenly; an `overlapping` window has 4."""
    stride: PositiveInt | None = None
    """Classes between the starts of two windows (`overlapping`); absent: half a window."""
    class_order: Literal["sorted", "shuffled"] = "sorted"
    """Order of the classes in `split` and `overlapping`; `shuffled` draws it from `class_seed`."""
    class_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of a `shuffled` class order; runs of several seeds may share it. Absent: the scenario's seed."""
    blur: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of a task's training samples that belong to other tasks' classes ("blurry" streams; `split`,
    head `class`). All other tasks give equally many. Tests have the task's classes alone."""
    boundaries: bool = True
    """Tell learners when a task begins and ends. `false` needs a learner that works without (`naive`, `der`,
    `der++`, `supsup` with inferred tasks), and tasks share outputs. Strategies still fuse by task."""
    permute_first: bool = False
    """Permute the first of `permuted` tasks too; `false` leaves its pixels in place."""
    max_angle: Annotated[float, Field(gt=0.0, le=360.0)] = 180.0
    """Angles of `rotated` tasks are spread evenly from 0 to below this many degrees."""
    datasets: list[str] = []
    """Names of the data sets (`datasets`), in learning order; empty: `data.dataset` alone."""
    shape: list[PositiveInt] | None = None
    """Channels, height and width of the samples of all `datasets`; absent: the first's."""
    order: Literal["same", "shuffled", "overlapping", "file"] = "same"
    """Order of a client's tasks. `same`: one order for all; `shuffled`: its own; `overlapping`: its own
    `tasks_per_client`, some shared with others; `file`: that of the `schedule`."""
    tasks_per_client: PositiveInt | None = None
    """Tasks that a client learns (`overlapping` order); absent: about half of them."""
    visits: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often each client goes through its tasks; above 1 they return in the same order."""
    pace: Literal["lockstep", "groups", "uniform", "poisson", "file"] = "lockstep"
    """When clients begin the next task. `lockstep`: all after `rounds_per_task`; `groups`, `uniform`: each
    group or client at its own pace; `poisson`: after a random number of rounds, drawn for every client and
    task, with mean `rounds_per_task`; `file`: by the `schedule`."""
    groups: PositiveInt | None = None
    """Number of equally large groups of clients (`groups`); absent: 2."""
    pace_range: list[Annotated[int, Field(ge=1, le=10**6)]] | None = None
    """Rounds a task of the fastest and the slowest. Groups lie evenly between them; `uniform` draws clients
    evenly. Absent: `rounds_per_task` and three times as many."""
    max_lag: PositiveInt | None = None
    """Tasks that the fastest client may be ahead of the slowest; it then waits. Absent: any number."""
    schedule: str | None = None
    """JSON file of every client's tasks and rounds, like a run's `schedule.json` (`file`)."""


class Continual(Section):
    """Continual learning: every client learns a stream of tasks without forgetting.

    All other keys are the learner's own (`strength`, `density`, …).
    """

    model_config = ConfigDict(extra="allow")

    learner: str = "naive"
    """Name of a learner, or your own as `"pkg.mod:Class"`."""
    tasks: TaskStream = TaskStream()
    head: Literal["task", "domain", "class"] | None = None
    """Outputs of the model. `task`: its own for each task; `domain`: shared by all tasks; `class`: one for
    each class of all tasks. Absent: `domain` for `permuted` and `rotated`, else `task`."""
    rounds_per_task: PositiveInt = 1
    """Federated rounds of each task; `rounds` is the number of tasks times this."""
    online: bool = False
    """Train on each sample once: a task's rounds share out its samples, for one epoch each. A learner may
    train on remembered samples again."""
    evaluate_without_task: bool = True
    """Also test models without the task given. Learners that infer it need a pass for every task: for tens
    of tasks, testing takes longer than learning."""
    evaluate_epochs: bool = False
    """Test each client on its current task after every local epoch, for learning curves."""
