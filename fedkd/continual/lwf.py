"""Learning without forgetting: the network before the task teaches the network that learns it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Learner, Step
from fedkd.continual.masks import pack, unpack
from fedkd.continual.teacher import dismiss_teacher, keep_teacher, taught
from fedkd.hyperparameters import STRICT
from fedkd.training.losses import kd_kl

MET = "met"


@dataclass(frozen=True, config=STRICT)
class LwF(Learner):
    """Keep to what the network said of the present samples before the task, among the classes it knew.

    ::

        penalty = λ Σ_h T² mean_n KL(softmax(z'_h(x_n) / T) ‖ softmax(z_h(x_n) / T))

    z' is the network as it was when the task began, in evaluation mode; h goes through the heads. Where tasks
    have units of their own, those of each old task are a head. Where they share their units there is one
    head, the units of the classes met in earlier tasks (see `distil`). It remembers next to nothing from one
    task to the next; the teacher is as large as the network.
    """

    name: ClassVar[str] = "lwf"
    paper: ClassVar[str] = (
        "Li & Hoiem, Learning without Forgetting, IEEE TPAMI 40 (12), 2018, arXiv 1606.09282"
    )

    weight: Annotated[float, Field(ge=0)] = 1.0
    """λ; 1 in the paper. With a head a task more is safe; with a shared head 3 already leaves little room for
    a new task, and 0.3 forgets."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 2.0
    """T; 2 in the paper. The higher, the more the unlikely classes count; a very high one asks for equal
    logits, up to a shift."""
    distil: Literal["met", "all"] = "met"
    """Units of a shared head that are held. `all` also holds those of classes not met before, which the
    teacher takes for unlikely: more of the old classes is left, and less is learned of the new ones."""

    def begin_task(self, context: LearnerContext) -> None:
        """Keep the network as it is for a teacher, once it has something to teach."""
        if context.task > 0:
            keep_teacher(context)

    def penalty(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return the distillation loss of all heads."""
        heads = _heads(context)
        if not heads:
            return None
        known, outputs = taught(context, step.inputs), step.outputs()
        losses = [
            kd_kl(outputs[:, head], (known[:, head] / self.temperature).softmax(1), self.temperature)
            for head in heads
        ]
        return self.weight * torch.stack(losses).sum()

    def end_task(self, context: LearnerContext) -> None:
        """Dismiss the teacher, and note the classes met."""
        dismiss_teacher(context)
        own = context.units[context.task]
        met = _met(context)
        some = self.distil == "met" and _is_shared(context, context.task)
        met[own[context.samples()[1].unique()] if some else own] = True
        context.memory[MET] = pack(met)


def _met(context: LearnerContext) -> Tensor:
    """Return which output units are those of classes met in earlier tasks, ``[O]`` bool."""
    if MET in context.memory:
        return unpack(context.memory[MET], (context.outputs,))
    return torch.zeros(context.outputs, dtype=torch.bool, device=context.device)


def _heads(context: LearnerContext) -> Sequence[Tensor]:
    """Return the units of every head that was trained in earlier tasks; those of one unit say nothing."""
    met = _met(context)
    heads: list[Tensor] = []
    for own in context.units[: context.task]:
        known = own[met[own]]
        if len(known) > 1 and not any(torch.equal(known, other) for other in heads):
            heads.append(known)
    return heads


def _is_shared(context: LearnerContext, task: int) -> bool:
    """Return whether another task of the stream has the same units."""
    return any(
        torch.equal(units, context.units[task]) for other, units in enumerate(context.units) if other != task
    )
