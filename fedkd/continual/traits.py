"""Properties of a learner that follow from its hooks, mixins and declared traits."""

from fedkd.continual.learner import Learner, LearnerTraits
from fedkd.continual.mixins import OwnLoss, Phases, StepObserver, TaskInference, TaskParameters
from fedkd.continual.reopened import Reopenable

AnyLearner = Learner | type[Learner]


def has(learner: AnyLearner, *mixins: type) -> bool:
    """Return whether a learner, or its class, has any of some mixins."""
    return issubclass(learner if isinstance(learner, type) else type(learner), mixins)


def traits_of(learner: AnyLearner) -> LearnerTraits:
    """Return the declared traits, for an instance under its hyper-parameters."""
    return learner.traits if isinstance(learner, type) else learner.configured_traits()


def trains_on_old_tasks(learner: AnyLearner) -> bool:
    """Return whether local training uses samples besides the present task's."""
    return learner.overrides("batch")


def changes_training(learner: AnyLearner) -> bool:
    """Return whether the learner changes the samples or the loss of local training."""
    return trains_on_old_tasks(learner) or has(learner, OwnLoss)


def needs_boundaries(learner: AnyLearner) -> bool:
    """Return whether the learner needs the start and end of each task."""
    traits = traits_of(learner)
    if traits.needs_boundaries is not None:
        return traits.needs_boundaries
    hooks = learner.overrides("begin_task", "end_task", "batch") or has(learner, Phases, TaskParameters)
    return traits.task_statistics or hooks


def tells_tasks_apart(learner: AnyLearner) -> bool:
    """Return whether the network has different outputs per task."""
    return traits_of(learner).task_statistics or has(learner, TaskParameters)


def predicts_by_weights(learner: AnyLearner) -> bool:
    """Return whether predictions depend on the weights and the task's units alone."""
    own = tells_tasks_apart(learner) or learner.overrides("predict") or has(learner, TaskInference)
    return not own


def leaves_steps_alone(learner: AnyLearner) -> bool:
    """Return whether training steps are those of plain training."""
    hooks = learner.overrides("trainable", "penalty", "project", "project_update")
    return not (hooks or tells_tasks_apart(learner) or has(learner, StepObserver))


def reopening_obstacle(learner: AnyLearner) -> str | None:
    """Return the reason against reopening old tasks, as a predicate; None: some may be reopened."""
    if trains_on_old_tasks(learner):
        return "trains on the samples of old tasks anyway"
    traits = traits_of(learner)
    protects = traits.isolates or traits.projects_updates
    if protects and traits.closed is None and not has(learner, Reopenable):
        return "protects all old tasks together, so none of them may change alone"
    return traits.closed
