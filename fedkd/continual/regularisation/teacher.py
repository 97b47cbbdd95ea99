"""A network as it was when a task began, kept to teach the one that learns it."""

from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.state import LearnerState, Table
from fedkd.models import predicting


class TeacherState(LearnerState):
    """The network before the present task, buffers included, by name; empty after the task."""

    teacher = Table()


def keep_teacher(context: LearnerContext) -> None:
    """Remember the network as it is now."""
    copies = {name: values.detach().clone() for name, values in context.network.state_dict().items()}
    TeacherState(context).teacher.put(copies)


def has_teacher(context: LearnerContext) -> bool:
    """Return whether there is a teacher: a task that has ended has none, though guidance may still come."""
    return bool(TeacherState(context).teacher)


def taught(context: LearnerContext, x: Tensor) -> Tensor:
    """Return all of the teacher's outputs ``[B, O]`` of samples ``[B, *input_shape]``, without gradients."""
    with predicting(context.network):
        return context.run(x, TeacherState(context).teacher.part()).float()


def dismiss_teacher(context: LearnerContext) -> None:
    """Forget the teacher."""
    TeacherState(context).teacher.drop()
