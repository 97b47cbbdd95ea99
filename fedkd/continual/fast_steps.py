"""Optional hooks for faster training steps: recorded steps, and other forms of a step."""

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Learner, Tensors
from fedkd.continual.mixins import task_parameters_of

L = TypeVar("L", bound=Learner)


class StepForm(Generic[L]):
    """Computes steps as the learner's methods say, within an epoch; faster forms derive from it."""

    def parameters(self, learner: L, context: LearnerContext) -> Tensors:
        """Return the parameters of the present task (see `TaskParameters`)."""
        return task_parameters_of(learner, context, context.task)

    def gradients(self, learner: L, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Return the projected gradients (see `Learner.project`)."""
        return learner.project(context, gradients)

    def end(self, learner: L, context: LearnerContext) -> None:
        """Write pending changes from ``context.step_cache`` to the weights, at the end of an epoch."""


PLAIN: StepForm[Any] = StepForm()


class FastSteps:
    """Mixin of learners whose training steps may be recorded and replayed, or have a faster form."""

    recordable: ClassVar[bool] = False
    """True if a step depends only on the weights, the memory, samples drawn ahead (`draw`), the task and the
    phase. It may change in place only trained tensors and the memory. It may branch on values, and write
    to the memory for another branch, before its first change. Each derived class declares it anew."""
    step_form: ClassVar[StepForm[Any]] = PLAIN
    """Form in which steps are computed."""

    def prepare_steps(self, context: LearnerContext) -> None:
        """Fill ``context.step_cache`` at the start of an epoch; recorded steps read no values of it."""

    def draw(self, context: LearnerContext) -> Sequence[Tensor]:
        """Return the random samples of the next step, which finds them in ``context.drawn``."""
        return ()


def step_form(learner: Learner, *, fast: bool = True) -> StepForm[Any]:
    """Return the fast form of a learner's steps, or the plain one.

    A class that overrides a computation of the form falls back to the plain one, unless it declares its own.
    """
    if fast:
        for cls in type(learner).__mro__:
            if "step_form" in vars(cls):
                found: StepForm[Any] = vars(cls)["step_form"]
                return found
            if {"task_parameters", "project"} & vars(cls).keys():
                break
    return PLAIN
