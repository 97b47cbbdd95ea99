"""Learning without forgetting: distillation from the network before the task."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.fast_steps import FastSteps
from fedkd.continual.learner import Learner, Step
from fedkd.continual.regularisation.teacher import TeacherState, keep_teacher, taught
from fedkd.continual.seen_classes import (
    is_shared,
    mark_seen,
    note_present,
    noted_units,
    present_units,
    seen_units,
)
from fedkd.plugins import hyperparameters
from fedkd.training import kd_kl

HEADS = "heads"


@hyperparameters
class LwF(FastSteps, Learner):
    """Keep the outputs of the network before the task on present samples, among old classes.

    ::

        penalty = λ Σ_h T² mean_n KL(softmax(z'_h(x_n) / T) ‖ softmax(z_h(x_n) / T))

    z' is the network at the start of the task, in evaluation mode; h runs over the heads. If tasks have their
    own units, each old task is a head. Shared units of earlier classes form one head (see `distil`). The
    teacher is as large as the network.

    If all classes compete, use the form of van de Ven et al. (Three Types of Incremental Learning, 2022):
    ``distil = "seen"``, ``compete = "seen"``, ``mix = "tasks"``. ::

        L = CE(y, z)                                               among the classes seen so far
        D = T² mean_n KL(softmax(z'_old(x_n) / T) ‖ softmax(z_seen(x_n) / T)_old)
        total = L / t + (1 − 1/t) · λ · D                          t-th task

    Classes without samples are mostly lost: expect 20 to 30 % where stored samples give 90.
    """

    name: ClassVar[str] = "lwf"
    recordable: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Li & Hoiem, Learning without Forgetting, IEEE TPAMI 40 (12), 2018, arXiv 1606.09282"
    )

    weight: Annotated[float, Field(ge=0)] = 1.0
    """λ; 1 in the paper. With a head a task more is safe; with a shared head 3 already leaves little room for
    a new task, and 0.3 forgets."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 2.0
    """T; 2 in the paper. The higher, the more the unlikely classes count; a very high one asks for equal
    logits, up to a shift."""
    distil: Literal["met", "seen", "all"] = "met"
    """Units of a shared head that are held: classes `met` in earlier tasks, among themselves; or against the
    present task's too (`seen`); or against `all` others, which the teacher finds unlikely. `all` keeps
    more of the old classes and learns less of the new ones."""
    compete: Literal["all", "seen"] = "all"
    """Units of a shared head in the cross entropy of own samples: `all`, or classes `seen` so far, so that
    later classes are not pushed down in advance."""
    mix: Literal["sum", "tasks"] = "sum"
    """Weights of old and new losses: `sum`, as in the paper, or `tasks`, an equal weight per task, so that
    old ones count more with each task."""

    def begin_task(self, context: LearnerContext) -> None:
        """Store the network as teacher once it has learned a task, and note the classes."""
        if context.task > 0:
            keep_teacher(context)
        if self.distil == "seen" or self.compete == "seen":
            note_present(context)

    def penalty(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return the heads' distillation loss, with corrections for mix and competition."""
        changed = self._among_seen(context, step)
        heads = self._heads(context)
        if not heads or not TeacherState(context).teacher:
            return changed
        known, outputs = taught(context, step.inputs), step.outputs()
        losses = []
        for head in heads:
            wanted = (known[:, head] / self.temperature).softmax(1)
            if self.distil == "seen" and is_shared(context, context.task):
                present = noted_units(context)
                present[head] = False
                rivals = present.nonzero()[:, 0]  # unknown to the teacher
                wanted = F.pad(wanted, (0, len(rivals)))
                head = torch.cat([head, rivals])
            losses.append(kd_kl(outputs[:, head], wanted, self.temperature))
        held = self.weight * torch.stack(losses).sum()
        if self.mix == "tasks":
            new = step.loss if changed is None else step.loss + changed
            held = context.task / (context.task + 1) * (held - new)
        return held if changed is None else held + changed

    def _among_seen(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return the change from cross entropy among all units to that among seen ones."""
        if self.compete == "all" or step.labels is None or not is_shared(context, context.task):
            return None
        outputs = step.outputs()[:, : context.outputs].float()
        assert step.tasks is not None
        seen = seen_units(context) | noted_units(context)
        target = context.units[context.task][step.labels]
        among_seen = F.cross_entropy(outputs.masked_fill(~seen, -torch.inf), target)
        return among_seen - context.cross_entropy(outputs, step.labels, step.tasks)

    def end_task(self, context: LearnerContext) -> None:
        """Drop the teacher, and note the task's classes."""
        TeacherState(context).teacher.drop()
        mark_seen(context, present_units(context))

    def prepare_steps(self, context: LearnerContext) -> None:
        self._heads(context)

    def _heads(self, context: LearnerContext) -> Sequence[Tensor]:
        """Return the units of every head of earlier tasks, without heads of one unit."""
        return context.once(HEADS, lambda: self._find_heads(context))

    def _find_heads(self, context: LearnerContext) -> Sequence[Tensor]:
        met = seen_units(context)
        heads: list[Tensor] = []
        for own in context.units[: context.task]:
            known = own if self.distil == "all" else own[met[own]]
            if len(known) > 1 and not any(torch.equal(known, other) for other in heads):
                heads.append(known)
        return heads
