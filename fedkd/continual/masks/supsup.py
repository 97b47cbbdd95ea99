"""SupSup: fixed random weights, and a mask of them for every task."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import LearnerTraits
from fedkd.continual.masks.mask_memory import MaskState
from fedkd.continual.masks.reopened_masks import ReopenedScores
from fedkd.continual.masks.supermask import MASK, SCORE_BITS, SupermaskLearner
from fedkd.continual.reopened import Reopenable, Reopened
from fedkd.continual.statistics import statistics_names
from fedkd.errors import UserError
from fedkd.models import evaluation_mode
from fedkd.plugins import hyperparameters

PROBE = 128
"""Samples that a decision about the task is made from."""
FEWEST = 5
"""Masks that are compared at least; ones not trained yet make up the number."""


@hyperparameters
class SupSup(Reopenable, SupermaskLearner):
    """Train each task's selection of fixed random weights.

    ::

        w     = sign(w_0) · √2/√fan_in            fixed
        M_t   = top `density` share of |S_t| in each layer, or S_t ≥ 0
        f_t   = f(x; w ⊙ M_t)                      gradients go straight through to the scores S_t

    A task's outputs stay the same bit for bit after its end. Untrained weights limit the accuracy, so widen
    the network rather than train longer. An unknown task is inferred: ``argmin_i ∂H/∂α_i`` with H the entropy
    of ``softmax f(x; w ⊙ Σ_i α_i M_i)`` at α = 1/k.

    Without known boundaries the learner chooses a mask before every epoch. With g the mean of ∂H/∂α over
    samples, it takes ``argmax_i softmax(−g)_i``, but opens a new mask if these k numbers are about equal:
    ``k · max_i softmax(−g)_i < 1 + tolerance``.
    """

    name: ClassVar[str] = "supsup"
    recordable: ClassVar[bool] = True
    paper: ClassVar[str] = "Wortsman et al., Supermasks in Superposition, NeurIPS 2020, arXiv 2006.14769"

    boundaries: Literal["known", "unknown"] = "known"
    """Task boundaries, `known` or `unknown`. If unknown, the learner may return to an old mask or open
    several for one task, and keeps all scores, since any mask may be trained again."""
    boundary_tolerance: Annotated[float, Field(gt=0)] = 0.125
    """Least distance from a uniform inferred task at which its mask is trained, with unknown boundaries; 0.1
    to 0.2 in the authors' code. Lower it if tasks get several masks, raise it if they share one (`masks`
    in the metrics)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kkt and self._finds_tasks:
            raise UserError("needs known task boundaries: boundaries = 'known'", key="continual.kkt")

    @property
    def _finds_tasks(self) -> bool:
        return self.boundaries == "unknown"

    def configured_traits(self) -> LearnerTraits:
        """Return the traits: without boundaries several tasks may share a mask."""
        if self._finds_tasks:
            shared = "trains masks that several tasks may share (boundaries = 'unknown')"
            alone = "finds tasks by itself (boundaries = 'unknown')"
            return replace(self.traits, needs_boundaries=False, closed=shared, withholds_masks=alone)
        closed = None if self.kkt else "forgets the scores of old masks; kkt = true keeps them"
        return replace(self.traits, closed=closed)

    def check(self, network: nn.Module) -> None:
        """Also refuse running statistics per task, which would reveal the task."""
        super().check(network)
        if self._finds_tasks and statistics_names(network):
            raise UserError(
                "'unknown' needs a model without running statistics, such as resnet8 with norm = 'group'",
                key="continual.boundaries",
            )

    def phase_of(self, epoch: int, epochs: int) -> str:
        """Return the phase of score training; with unknown boundaries, a new phase every epoch."""
        return f"{MASK} {epoch}" if self._finds_tasks else MASK

    def begin_phase(self, context: LearnerContext) -> None:
        """Choose the mask first if boundaries are unknown."""
        if self._finds_tasks:
            slot = self._infer_slot(context)
            state = MaskState(context)
            if state.slots is None:
                state.slots = context.units[0].new_full((context.tasks,), -1)
            state.slots[context.task] = slot
            unvisited = torch.zeros(context.tasks, dtype=torch.uint8, device=context.device)
            state.visits.setdefault(slot, unvisited)[context.task] = 1
        super().begin_phase(context)

    def end_task(self, context: LearnerContext) -> None:
        """Store the mask as bits, unless it may be trained again."""
        if not self._finds_tasks:
            super().end_task(context)
        elif self._trained_slot(context, context.task) >= 0:
            self.remember_figures(context, self.slot(context, context.task))

    def report(self, context: LearnerContext) -> dict[str, float]:
        """Add the number of `masks` if the learner chooses it."""
        figures = super().report(context)
        return {**figures, "masks": len(self.slots(context))} if self._finds_tasks else figures

    def reopen(self, context: LearnerContext, task: int) -> Reopened | None:
        """Return an old task whose scores and mask may change."""
        memory = self.memory(context)
        kept = memory.is_settled(task) and memory.has_scores(task)
        return ReopenedScores(self, context, task) if kept else None

    def stored_bits(self, bits: Sequence[Tensor], weights: int) -> int:
        """Return the bits of a mask, or of its scores if it may be trained again."""
        return SCORE_BITS * weights if self._finds_tasks else super().stored_bits(bits, weights)

    def slot(self, context: LearnerContext, task: int) -> int:
        """Return the mask of a task's last training; for a new task, the next free one."""
        if not self._finds_tasks:
            return task
        chosen = self._trained_slot(context, task)
        return len(self.slots(context)) if chosen < 0 else chosen

    def _trained_slot(self, context: LearnerContext, task: int) -> int:
        slots = MaskState(context).slots
        return -1 if slots is None else int(slots[task])

    def slots(self, context: LearnerContext) -> list[int]:
        if not self._finds_tasks:
            return super().slots(context)
        memory, opened = self.memory(context), 0
        while memory.has(opened):
            opened += 1
        return list(range(opened))

    def units(self, context: LearnerContext, slot: int) -> Tensor:
        """Return the output units `[C]` of the tasks that a mask was trained on."""
        if not self._finds_tasks:
            return super().units(context, slot)
        tasks = MaskState(context).visits[slot].nonzero().flatten().tolist()
        return torch.cat([context.units[task] for task in tasks]).unique()

    def _infer_slot(self, context: LearnerContext) -> int:
        opened = len(self.slots(context))
        x, _ = context.samples()
        if not opened or not len(x):
            return max(opened - 1, 0)
        probe = torch.randperm(len(x), generator=context.generator("boundary"))[:PROBE].to(x.device)
        compared = range(max(opened, FEWEST))
        with evaluation_mode(context.network):
            slopes = self.superposition(context, compared).slopes(x[probe], compared).mean(dim=0)
        confidence = (-slopes).softmax(dim=0)
        likeliest = int(confidence.argmax())
        uniform = len(compared) * float(confidence[likeliest]) < 1.0 + self.boundary_tolerance
        return opened if uniform or likeliest >= opened else likeliest
