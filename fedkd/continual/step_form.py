"""The form in which a learner's training steps are computed: as its methods say, or a faster one."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Learner, Tensors

L = TypeVar("L", bound=Learner)


class StepForm(Generic[L]):
    """Steps as the learner's methods say; faster forms derive from this one.

    A form computes the same as the learner up to rounding. It is used within an epoch's steps alone, where
    ``context.step_cache`` is there to keep what steps have in common.
    """

    def effective(self, learner: L, context: LearnerContext) -> Tensors:
        """Return the effective parameters of the present task (see `Learner.effective`)."""
        return learner.effective(context, context.task)

    def filter(self, learner: L, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Return the filtered gradients (see `Learner.filter`)."""
        return learner.filter(context, gradients)

    def end(self, learner: L, context: LearnerContext) -> None:
        """Write pending changes in the step cache to the weights, after the last step of an epoch."""


PLAIN: StepForm[Any] = StepForm()


class HasFastForm:
    """Mixin of learners whose steps have a faster form."""

    step_form: ClassVar[StepForm[Any]] = PLAIN


def step_form(learner: Learner, *, fast: bool = True) -> StepForm[Any]:
    """Return the fast form of a learner's steps, or the plain one.

    A class that overrides what a form computes has no fast form, unless it declares one of its own.
    """
    if fast:
        for cls in type(learner).__mro__:
            if "step_form" in vars(cls):
                found: StepForm[Any] = vars(cls)["step_form"]
                return found
            if {"effective", "filter"} & vars(cls).keys():
                break
    return PLAIN
