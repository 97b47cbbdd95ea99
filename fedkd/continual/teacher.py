"""A network as it was when a task began, kept to teach the one that learns it."""

from __future__ import annotations

from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.models.mode import predicting
from fedkd.namespaces import below, under

TEACHER = "teacher/"


def keep_teacher(context: LearnerContext) -> None:
    """Remember the network as it is now, buffers included."""
    copies = {name: values.detach().clone() for name, values in context.network.state_dict().items()}
    context.memory.update(under(TEACHER, copies))


def has_teacher(context: LearnerContext) -> bool:
    """Return whether there is a teacher: a task that has ended has none, though guidance may still come."""
    return bool(below(TEACHER, context.memory))


def taught(context: LearnerContext, x: Tensor) -> Tensor:
    """Return all of the teacher's outputs ``[B, O]`` of samples ``[B, *input_shape]``, without gradients."""
    with predicting(context.network):
        return context.run(x, below(TEACHER, context.memory)).float()


def dismiss_teacher(context: LearnerContext) -> None:
    """Forget the teacher, if there is one."""
    for name in under(TEACHER, below(TEACHER, context.memory)):
        del context.memory[name]
