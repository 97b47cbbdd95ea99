"""Dark Experience Replay: stored samples keep their logits at storage."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Learner, Step
from fedkd.continual.replay import reservoir
from fedkd.continual.replay.reservoir import Kept
from fedkd.plugins import hyperparameters
from fedkd.training import logits_mse


@hyperparameters
class DER(Learner):
    """Keep the logits of stored samples at their stored values.

    ::

        penalty = α · mean of (z' − z(x'))²      over R samples x' drawn from memory and all O outputs

    z' are the logits of x' when it was stored: of all outputs, in training mode, before that step's update.
    The memory is a reservoir over all own samples in all epochs. It works without task boundaries, and is
    replayed from the second step on. Distillation has the penalty too, but its samples are never stored.
    """

    name: ClassVar[str] = "der"
    paper: ClassVar[str] = (
        "Buzzega et al., Dark Experience for General Continual Learning: a Strong, Simple Baseline, NeurIPS"
        " 2020, arXiv 2004.07211"
    )

    memory_size: Annotated[int, Field(ge=0)] = 1000
    """Samples kept of all tasks together; 200, 500 or 5120 in the paper. Each costs its own bytes and four
    for every output. 0 trains like `naive`."""
    alpha: Annotated[float, Field(ge=0)] = 0.5
    """α; 0.1 to 1 in the paper, and the larger, the more is kept and the less is learned of new tasks. It
    multiplies a mean over outputs, as in the authors' code, not a sum. 0 trains like `naive`."""
    replay_batch_size: Annotated[int, Field(ge=1)] | None = None
    """R: stored samples in a step; absent: the training batch size, as is usual. A step's cost grows with
    it."""

    def penalty(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return the replay loss, and offer the step's samples to the memory."""
        if self.memory_size == 0:
            return None
        held = self.replay(context)  # before the step's own samples may be among them
        if step.labels is not None and step.tasks is not None:
            with torch.no_grad():
                outputs = step.outputs()[:, : context.outputs].float()
            batch = Kept(step.inputs, step.labels, step.tasks, outputs.detach())
            reservoir.offer(context, batch, self.memory_size)
        return held

    def replay(self, context: LearnerContext) -> Tensor | None:
        """Return the loss of stored samples, a scalar; None: there are none."""
        kept = reservoir.draw(context, self.replay_batch_size)
        if kept is None:
            return None
        return self.alpha * logits_mse(context.run(kept.samples)[:, : context.outputs], kept.outputs)


@hyperparameters
class DERpp(DER):
    """Train on stored samples, and keep their logits at their stored values.

    ::

        penalty = α · mean of (z' − z(x'))²  +  β · mean of CE(y'', x'')

    x', z' and x'', y'' are two draws from the memory of `der`; the cross entropy of a sample is among its own
    task's units. Labels correct logits from early in training. β = 0 is `der`.
    """

    name: ClassVar[str] = "der++"

    beta: Annotated[float, Field(ge=0)] = 0.5
    """β; 0.5 to 1 in the paper: how much a stored sample counts beside a new one."""

    def replay(self, context: LearnerContext) -> Tensor | None:
        held = super().replay(context)
        if held is None or self.beta == 0:
            return held
        kept = reservoir.draw(context, self.replay_batch_size)
        assert kept is not None
        outputs = context.run(kept.samples)
        return held + self.beta * context.cross_entropy(outputs, kept.labels, kept.tasks)
