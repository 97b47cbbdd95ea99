"""An old task that is open once more, for guidance of those who meet it later: federated backward transfer.

What may change then is for the learner to say: only what no other task's guarantee depends on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Learner, Step, Tensors
from fedkd.continual.mixins import task_parameters_of
from fedkd.continual.task_model import TaskModel
from fedkd.training.optimizer import OptimizerSpec


class Reopened:
    """An old task of a learner that closes none: its usual penalty and filter are all there is to obey.

    Args:
        learner: The client's.
        context: The client's.
        task: The old task.
    """

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
        """Return what is added to the loss, a scalar; None: nothing."""
        return self.learner.penalty(self.context, step)

    def project(self, gradients: Tensors) -> Tensors:
        """Return what becomes of gradients, same names and shapes."""
        return self.learner.project(self.context, gradients)

    def project_update(self, changes: Tensors) -> Tensors:
        """Return what becomes of a step's changes where an optimiser may leave what gradients were let into.

        A change that is not returned stays.
        """
        return {}

    def close(self) -> None:
        """Close the task again."""


class Reopenable(ABC):
    """Mixin of learners that say themselves which part of an old task guidance may change."""

    @abstractmethod
    def reopen(self, context: LearnerContext, task: int) -> Reopened | None:
        """Return an old task opened for guidance (federated backward transfer); None: it stays closed.

        Changes must touch that task alone: the guarantees of all others still hold.

        Args:
            context: Its ``task`` is the present one.
            task: One that has ended.
        """


class ReopenedRules:
    """The `StepRules` of teaching an old task (see `LearnerRules`, those of the present one).

    Args:
        reopened: What may change, and how.
        model: The old task's, which is given new effective parameters before every step.
        substitutes: Makes them.
        optimizer: Of `reopened`.
    """

    def __init__(
        self,
        reopened: Reopened,
        model: TaskModel,
        substitutes: Callable[[], Tensors],
        optimizer: OptimizerSpec,
    ) -> None:
        self._reopened, self._model, self._substitutes = reopened, model, substitutes
        self._trainable = {
            name: tensor.requires_grad_() for name, tensor in sorted(reopened.trainable().items())
        }
        trained = {id(tensor) for tensor in self._trainable.values()}
        self._untrained = [p for p in reopened.context.network.parameters() if id(p) not in trained]
        self._drifts = optimizer.name != "sgd" or optimizer.momentum > 0.0 or optimizer.weight_decay > 0.0
        self._before: Tensors = {}

    @property
    def idle(self) -> bool:
        return False

    @property
    def kind(self) -> Hashable | None:
        return None

    @property
    def reads(self) -> Sequence[Tensor]:
        return ()

    def draw(self) -> Sequence[Tensor]:
        return ()

    @property
    def parameters(self) -> Sequence[Tensor]:
        return list(self._trainable.values())

    def before_step(self) -> None:
        self._model.substitute(self._substitutes())
        for parameter in self._untrained:
            parameter.grad = None

    def penalty(self, batch: Sequence[Tensor], loss: Tensor) -> Tensor | None:
        return self._reopened.penalty(Step(batch[0], self._model, loss))

    def after_backward(self) -> None:
        gradients = {name: t.grad for name, t in self._trainable.items() if t.grad is not None}
        for name, gradient in self._reopened.project(gradients).items():
            self._trainable[name].grad = gradient
        if self._drifts:
            self._before = {name: tensor.detach().clone() for name, tensor in self._trainable.items()}

    def after_step(self) -> None:
        if not self._drifts:
            return
        with torch.no_grad():
            changes = {name: t.detach() - self._before[name] for name, t in self._trainable.items()}
            for name, change in self._reopened.project_update(changes).items():
                self._trainable[name].copy_(self._before[name] + change)

    def after_epoch(self) -> None:
        """Nothing is due."""

    def before_evaluation(self) -> None:
        self._model.substitute(self._substitutes())
