"""A copy of the network at the start of a task, as its teacher."""

from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.state import LearnerState, TableField
from fedkd.models import evaluation_mode


class TeacherState(LearnerState):
    """The network before the present task, buffers included, by name; empty once the task has ended."""

    teacher = TableField()


def keep_teacher(context: LearnerContext) -> None:
    """Store the present network."""
    copies = {name: values.detach().clone() for name, values in context.network.state_dict().items()}
    TeacherState(context).teacher.put(copies)


def taught(context: LearnerContext, x: Tensor) -> Tensor:
    """Return the teacher's outputs ``[B, O]`` of samples ``[B, *input_shape]``, without gradients."""
    with evaluation_mode(context.network):
        return context.run(x, TeacherState(context).teacher.part()).float()
