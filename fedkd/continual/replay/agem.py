"""A-GEM: no step may raise the mean loss on a memory of earlier tasks."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.fast_steps import FastSteps
from fedkd.continual.learner import Learner, Tensors
from fedkd.continual.replay import buffer as episodes
from fedkd.plugins import hyperparameters


@hyperparameters
class AGem(FastSteps, Learner):
    """Remove the part of a gradient that conflicts with samples of earlier tasks.

    With g the gradient of a step and r that of the mean cross entropy of a batch drawn from memory, at the
    same weights, all parameters as one vector::

        g ← g − min(⟨g, r⟩, 0) / ⟨r, r⟩ · r

    The stored samples serve as a reference only. The guarantee is a first-order one for one random batch, so
    some forgetting remains, and more with Adam. The memory is that of `er`.
    """

    name: ClassVar[str] = "agem"
    recordable: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Chaudhry et al., Efficient Lifelong Learning with A-GEM, ICLR 2019, arXiv 1812.00420"
    )

    memory_size: Annotated[int, Field(ge=0)] = 1000
    """Samples kept of all tasks together, equally many of each. More make the reference less dependent on a
    few samples, which matters less here than in replay. 0 trains like `naive`."""
    reference_batch_size: Annotated[int, Field(ge=1)] = 256
    """Stored samples for a step's reference gradient; 256 as in the authors' code, or all if there are fewer.
    Small batches are noisy and protect less: with 10, five short permuted tasks forgot twice as much.
    Large ones cost their backward pass."""

    def draw(self, context: LearnerContext) -> Sequence[Tensor]:
        """Return remembered samples for the next step; none if nothing is remembered."""
        return episodes.draw(context, self.reference_batch_size) or ()

    def project(self, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Return gradients without the part that raises the memory's loss."""
        episode = episodes.drawn(context, self.reference_batch_size)
        if episode is None or not gradients:
            return gradients
        trainable = self.trainable(context)
        names = list(gradients)
        found = torch.autograd.grad(
            episodes.replay_loss(context, episode), [trainable[name] for name in names], allow_unused=True
        )
        reference = {name: r for name, r in zip(names, found, strict=True) if r is not None}
        return remove_conflict(gradients, reference)

    def end_task(self, context: LearnerContext) -> None:
        episodes.remember(context, self.memory_size)


def remove_conflict(gradients: Tensors, reference: Tensors) -> Tensors:
    """Return ``g − min(⟨g, r⟩, 0) / ⟨r, r⟩ · r``; tensors absent from `reference` count as zero."""
    if not reference:
        return gradients
    agreement = torch.stack([(gradients[name] * r).sum() for name, r in reference.items()]).sum()
    length = torch.stack([r.square().sum() for r in reference.values()]).sum()
    # Reading values would make a GPU wait, so this branches on none; a zero r changes nothing.
    excess: Tensor = torch.where(length > 0, agreement.clamp(max=0.0) / length, 0.0)
    return {name: g - excess * reference[name] if name in reference else g for name, g in gradients.items()}
