"""The diagonal of a task's Fisher information: the importance in the EWC family."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Tensors
from fedkd.continual.regularisation.importance import some_samples, summed_gradients
from fedkd.errors import TrainingDiverged
from fedkd.training import predict_logits

Labels = Annotated[
    Literal["sampled", "true"],
    Field(
        description="`sampled` from what the network predicts, as the Fisher information has it, or the"
        " `true` ones (the empirical Fisher), which give weight to wrong predictions. Alike where a task was"
        " learned well."
    ),
]
"""Hyper-parameter: which labels F is measured with."""
Samples = Annotated[
    Annotated[int, Field(ge=1)] | None,
    Field(
        description="Samples of the task that F is measured on, drawn at random; absent: all. A few hundred"
        " are enough, and save time with convolutions; networks of linear layers take less than an epoch for"
        " all."
    ),
]
"""Hyper-parameter: how many samples F is measured on."""


def fisher_diagonal(context: LearnerContext, labels: Labels, samples: int | None) -> Tensors:
    """Return ``F_i = mean_n (∂ log p(y_n | x_n, θ) / ∂θ_i)²`` of the present task, by parameter.

    p is the softmax over the task's units. With `labels`, y_n is drawn from p, else it is the true label
    (the "empirical Fisher"). Without samples F is zero. `samples` None: all of the task.

    Raises:
        TrainingDiverged: Nothing can be drawn from the network's predictions.
    """
    x, y = some_samples(context, samples)
    if labels == "sampled" and len(x):
        probabilities = context.logits_of(predict_logits(context.network, x), context.task).softmax(1).cpu()
        if not bool(probabilities.isfinite().all()):
            raise TrainingDiverged("predictions stopped being finite; a lower training.lr may help")
        drawn = torch.multinomial(probabilities, 1, generator=context.generator("fisher"))
        y = drawn[:, 0].to(x.device)

    def log_likelihood(outputs: Tensor, y: Tensor) -> Tensor:
        return -F.cross_entropy(context.logits_of(outputs, context.task), y, reduction="none")

    sums = summed_gradients(context.network, x, y, log_likelihood, torch.square)
    return {name: values / max(len(x), 1) for name, values in sums.items()}
