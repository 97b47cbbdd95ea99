"""Optional hooks of learners, each a mixin beside `Learner`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.task_model import TaskModel
from fedkd.training import OptimizerSpec

Tensors = dict[str, Tensor]
WEIGHTS = "weights"
"""The phase of learners that have only one."""


class TaskParameters(ABC):
    """Mixin of learners whose network has other parameters for each task: masks, scales, sums."""

    @abstractmethod
    def task_parameters(self, context: LearnerContext, task: int) -> Tensors:
        """Return the parameters of a forward pass for a task, by name; others are the network's own.

        Called with gradients before every step, and for evaluations of any task, future ones included.
        """


class Phases:
    """Mixin of learners that train a task in several phases, each with its own tensors or optimiser."""

    def phase_of(self, epoch: int, epochs: int) -> str:
        """Return the phase of an epoch, 0-based over all rounds of the task."""
        return WEIGHTS

    def begin_phase(self, context: LearnerContext) -> None:
        """Get ready for ``context.phase``, the first of a task included."""

    def optimizer(self, context: LearnerContext, spec: OptimizerSpec) -> OptimizerSpec:
        """Return the optimiser of the present phase, given the scenario's."""
        return spec


class StepObserver(ABC):
    """Mixin of learners that follow every optimiser step."""

    @abstractmethod
    def after_step(self, context: LearnerContext, before: Tensors, gradients: Tensors) -> None:
        """React to a step, given the trainable tensors before it and the gradients, penalty included."""


class OwnLoss(ABC):
    """Mixin of learners with another loss than the cross entropy on private samples."""

    @abstractmethod
    def loss(self, context: LearnerContext, outputs: Tensor, labels: Tensor, tasks: Tensor) -> Tensor:
        """Return the mean loss of private samples; arguments as of `LearnerContext.cross_entropy`."""


class TaskInference(ABC):
    """Mixin of learners with their own predictions for samples without a task."""

    @property
    def extra_outputs(self) -> int:
        """Number of output units besides those of classes, for the inference."""
        return 0

    @abstractmethod
    def predict_without_task(
        self, context: LearnerContext, model: TaskModel, x: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return outputs ``[B, O]`` and the inferred tasks ``[B, T]`` bool; None: no task was inferred.

        A row has several tasks where the learner does not tell them apart. ``context.task`` and the model, in
        evaluation mode, belong to the last task. The samples' true task must have no influence.
        """


class StateExchange(ABC):
    """Mixin of learners that exchange state with a strategy made for them."""

    @abstractmethod
    def export_state(self, context: LearnerContext, tasks: Sequence[int]) -> Tensors:
        """Return tensors for the strategy's upload by names, for ``context.task`` and further begun tasks."""

    @abstractmethod
    def import_state(self, context: LearnerContext, state: Tensors) -> None:
        """Take tensors of the strategy, before local training."""


def task_parameters_of(learner: object, context: LearnerContext, task: int) -> Tensors:
    """Return the `TaskParameters` of a learner for a task; empty without any."""
    return learner.task_parameters(context, task) if isinstance(learner, TaskParameters) else {}


def extra_outputs(learner: object) -> int:
    """Return the number of output units besides those of classes."""
    return learner.extra_outputs if isinstance(learner, TaskInference) else 0
