"""Old tasks reopened to distil from other clients that learn them later: federated backward transfer.

Only tensors outside the guarantees of other tasks may change.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Learner, Step, Tensors
from fedkd.continual.mixins import task_parameters_of
from fedkd.continual.task_model import TaskModel
from fedkd.training import OptimizerSpec


class Reopened:
    """An old task of a learner without closed tasks: its usual penalty and projection apply."""

    def __init__(self, learner: Learner, context: LearnerContext, task: int) -> None:
        self.learner, self.context, self.task = learner, context, task

    def trainable(self) -> Tensors:
        """Return the tensors that may change, by name."""
        return self.learner.trainable(self.context)

    def task_parameters(self) -> Tensors:
        """Return the old task's parameters, with a graph back to `trainable` tensors."""
        return task_parameters_of(self.learner, self.context, self.task)

    def optimizer(self, spec: OptimizerSpec) -> OptimizerSpec:
        """Return the optimiser of `trainable` tensors, given the scenario's."""
        return spec

    def penalty(self, step: Step) -> Tensor | None:
        """Return a scalar that is added to the loss, or None."""
        return self.learner.penalty(self.context, step)

    def project(self, gradients: Tensors) -> Tensors:
        """Return projected gradients, same names and shapes."""
        return self.learner.project(self.context, gradients)

    def project_update(self, changes: Tensors) -> Tensors:
        """Return a step's projected changes; omitted changes stay."""
        return {}

    def close(self) -> None:
        """Close the task again."""


class Reopenable(ABC):
    """Mixin of learners that decide which part of an old task guidance may change."""

    @abstractmethod
    def reopen(self, context: LearnerContext, task: int) -> Reopened | None:
        """Return an ended task opened for guidance, or None; its changes must affect that task alone."""


class ProjectedSteps:
    """Gradients and updates of an optimiser's tensors, as a learner or a reopened task projects them.

    The network's other parameters may get gradients too, which are dropped.
    """

    def __init__(self, trainable: Tensors, network: nn.Module, optimizer: OptimizerSpec) -> None:
        # By name: an optimiser's state goes by their order, and memory out of a checkpoint keeps none.
        self._trainable = {name: tensor.requires_grad_() for name, tensor in sorted(trainable.items())}
        trained = {id(tensor) for tensor in self._trainable.values()}
        self._untrained = [p for p in network.parameters() if id(p) not in trained]
        self._drifts = optimizer.name != "sgd" or optimizer.momentum > 0.0 or optimizer.weight_decay > 0.0
        self._before: Tensors = {}

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The tensors, in the order of their names."""
        return list(self._trainable.values())

    def _forget_gradients(self) -> None:
        for parameter in self._untrained:
            parameter.grad = None

    def _gradients(self) -> Tensors:
        return {name: t.grad for name, t in self._trainable.items() if t.grad is not None}

    def _project_gradients(self, project: Callable[[Tensors], Tensors]) -> None:
        for name, gradient in project(self._gradients()).items():
            self._trainable[name].grad = gradient

    def _note_before(self) -> None:
        self._before = {name: tensor.detach().clone() for name, tensor in self._trainable.items()}

    def _project_changes(self, project: Callable[[Tensors], Tensors]) -> None:
        with torch.no_grad():
            changes = {name: t.detach() - self._before[name] for name, t in self._trainable.items()}
            for name, change in project(changes).items():
                self._trainable[name].copy_(self._before[name] + change)


class ReopenedRules(ProjectedSteps):
    """The `StepRules` of distilling into an old task; `substitutes` makes its parameters."""

    idle = False
    kind: Hashable | None = None
    reads: Sequence[Tensor] = ()

    def __init__(
        self,
        reopened: Reopened,
        model: TaskModel,
        substitutes: Callable[[], Tensors],
        optimizer: OptimizerSpec,
    ) -> None:
        super().__init__(reopened.trainable(), reopened.context.network, optimizer)
        self._reopened, self._model, self._substitutes = reopened, model, substitutes

    def draw(self) -> Sequence[Tensor]:
        return ()

    def before_step(self) -> None:
        self._model.substitute(self._substitutes())
        self._forget_gradients()

    def penalty(self, batch: Sequence[Tensor], loss: Tensor) -> Tensor | None:
        return self._reopened.penalty(Step(batch[0], self._model, loss))

    def after_backward(self) -> None:
        self._project_gradients(self._reopened.project)
        if self._drifts:
            self._note_before()

    def after_step(self) -> None:
        if self._drifts:
            self._project_changes(self._reopened.project_update)

    def after_epoch(self) -> None:
        """Do nothing."""

    def before_evaluation(self) -> None:
        self._model.substitute(self._substitutes())
