"""A learner's hooks in every training step."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.fast_steps import PLAIN, FastSteps, StepForm
from fedkd.continual.learner import Learner, Step
from fedkd.continual.mixins import StepObserver
from fedkd.continual.reopened import ProjectedSteps
from fedkd.continual.subspace.fast.factored_gradient import FactoredWeight
from fedkd.continual.task_model import TaskModel
from fedkd.continual.traits import changes_training, leaves_steps_alone
from fedkd.training import OptimizerSpec, declares_recordable, tree_leaves


class LearnerRules(ProjectedSteps):
    """The `StepRules` of one phase: applies a learner's hooks to its trainable tensors.

    Args:
        model: The present task's model, which is given new effective parameters before every step.
        substitutes: From a task to these parameters.
        optimizer: Of the phase; some leave the space that gradients were projected to.
        steps: Optimiser steps of an epoch, each of `accumulate` batches, the last perhaps of fewer.
        labelled: True for the client's own samples, with labels second and, if the learner
            `changes_training`, tasks third; False for guidance.
        form: How steps are computed; `substitutes` go by it in a step.
    """

    def __init__(
        self,
        learner: Learner,
        context: LearnerContext,
        model: TaskModel,
        substitutes: Callable[[int], dict[str, Tensor]],
        optimizer: OptimizerSpec,
        after_epoch: Callable[[], None] | None,
        *,
        steps: int = 1,
        accumulate: int = 1,
        labelled: bool = False,
        form: StepForm[Any] = PLAIN,
    ) -> None:
        super().__init__(learner.trainable(context), context.network, optimizer)
        self._learner, self._context, self._model, self._form = learner, context, model, form
        self._substitutes, self._after_epoch = substitutes, after_epoch
        self._steps, self._accumulate, self._labelled = steps, accumulate, labelled
        self._batches = 0
        self._confines = learner.traits.projects_updates and self._drifts

    @property
    def idle(self) -> bool:
        return leaves_steps_alone(self._learner)

    @property
    def kind(self) -> Hashable | None:
        learner, context = self._learner, self._context
        if not (leaves_steps_alone(learner) or declares_recordable(learner)):
            return None
        self._prepare()
        remembered = [(name, t.shape, t.stride(), t.dtype) for name, t in sorted(context.memory.items())]
        read = [(t.shape, t.stride(), t.dtype) for t in self.reads]
        every = self._model.units is None
        how = type(learner), repr(learner), *sorted(context.step_cache or ())  # it may hold lists
        return *how, context.task, context.phase, self._labelled, every, *remembered, *read

    @property
    def reads(self) -> Sequence[Tensor]:
        context = self._context
        cache = context.step_cache or {}
        remembered = [context.memory[name] for name in sorted(context.memory)]
        cached = [cache[name] for name in sorted(cache)]
        return [*context.tables, *remembered, *_tensors_in(cached)]

    def _prepare(self) -> None:
        """Have the learner compute the common results of an epoch's steps."""
        if self._context.step_cache is None:
            self._context.step_cache = {}
        if not leaves_steps_alone(self._learner):
            with torch.no_grad():
                self._substitutes(self._context.task)
                if isinstance(self._learner, FastSteps):
                    self._learner.prepare_steps(self._context)

    def draw(self) -> Sequence[Tensor]:
        if not isinstance(self._learner, FastSteps) or type(self._learner).draw is FastSteps.draw:
            return ()
        self._context.drawn = self._learner.draw(self._context)
        return self._context.drawn

    def before_step(self) -> None:
        if self._context.step_cache is None:
            self._context.step_cache = {}
        step = self._batches // self._accumulate
        self._context.position = step / (self._steps - 1) if self._steps > 1 else 1.0
        self._batches += 1
        self._model.substitute(self._substitutes(self._context.task))
        self._forget_gradients()

    def penalty(self, batch: Sequence[Tensor], loss: Tensor) -> Tensor | None:
        return self._learner.penalty(self._context, self._step(batch, loss))

    def _step(self, batch: Sequence[Tensor], loss: Tensor) -> Step:
        if not self._labelled:
            return Step(batch[0], self._model, loss)
        inputs, labels, *others = batch
        if others and changes_training(self._learner):
            return Step(inputs, self._model, loss, labels, others[0])
        return Step(inputs, self._model, loss, labels, torch.full_like(labels, self._context.task))

    def after_backward(self) -> None:
        self._project_gradients(partial(self._form.gradients, self._learner, self._context))
        if self._confines or isinstance(self._learner, StepObserver):
            self._note_before()

    def after_step(self) -> None:
        if self._confines:
            self._project_changes(partial(self._learner.project_update, self._context))
        if isinstance(self._learner, StepObserver):
            with torch.no_grad():
                self._learner.after_step(self._context, self._before, self._gradients())

    def after_epoch(self) -> None:
        # Also without observers, which must make no difference.
        if self._context.step_cache is not None:
            self._form.end(self._learner, self._context)
        self._context.step_cache, self._context.position, self._context.drawn = None, None, None
        self._batches = 0
        if self._after_epoch is not None:
            self._after_epoch()

    def before_evaluation(self) -> None:
        self._context.position = None
        self._model.substitute(self._substitutes(self._context.task))


def _tensors_in(cached: Sequence[Any]) -> list[Tensor]:
    """Return the tensors that a step reads from its learner's step cache."""
    found: list[Tensor] = []
    for kept in tree_leaves(cached):
        if isinstance(kept, FactoredWeight):
            found += kept.tensors
        elif isinstance(kept, Tensor):
            found.append(kept)
    return found
