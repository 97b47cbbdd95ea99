"""Memory aware synapses: importance is the outputs' sensitivity to a weight."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.regularisation.importance import some_samples, summed_gradients
from fedkd.continual.regularisation.quadratic_penalty import (
    AnchorState,
    QuadraticPenalty,
    add_importance,
    copies,
)
from fedkd.plugins import hyperparameters


@hyperparameters
class MAS(QuadraticPenalty):
    """Hold weights to their last values, weighted by the outputs' sensitivity in old tasks.

    ::

        Ω      ← Ω + mean_n |∂ ‖f(x_n)‖² / ∂θ|      at the end of a task, sample by sample; f: its logits
        penalty = λ Σ_i Ω_i (θ_i − θ_i*)²           θ* the weights at the end of the last task

    Ω needs no labels.
    """

    name: ClassVar[str] = "mas"
    recordable: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Aljundi et al., Memory Aware Synapses: Learning what (not) to forget, ECCV 2018, arXiv 1711.09601"
    )

    strength: Annotated[float, Field(ge=0)] = 1.0
    """λ; 1 in the paper. Sweep it over powers of ten. Split MNIST with Adam: 0.1 to 10. Plain SGD diverges
    unless ``2 · lr · λ · max Ω`` is below 2; Ω grows with the logits and with every task."""
    samples: Annotated[int, Field(ge=1)] | None = None
    """Samples of the task that Ω is measured on, drawn at random; absent: all. A few hundred are enough, and
    save time with convolutions; networks of linear layers take less than an epoch for all."""

    def end_task(self, context: LearnerContext) -> None:
        """Add the task's importances, and anchor the present weights."""

        def squared_norm(outputs: Tensor, _: Tensor) -> Tensor:
            return context.logits_of(outputs, context.task).square().sum(1)

        x, y = some_samples(context, self.samples)
        sums = summed_gradients(context.network, x, y, squared_norm, torch.abs)
        add_importance(context, {name: total / max(len(x), 1) for name, total in sums.items()})
        AnchorState(context).anchor.put(copies(self.trainable(context)))
