"""SSNeT and ExSSNeT: find a mask, then train all or the exclusive weights under it."""

from dataclasses import replace
from math import floor
from typing import Annotated, ClassVar

from pydantic import Field

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import LearnerTraits, Tensors
from fedkd.continual.masks import masks
from fedkd.continual.masks.mask_memory import MaskState
from fedkd.continual.masks.reopened_masks import ReopenedWeights
from fedkd.continual.masks.supermask import MASK, SupermaskLearner
from fedkd.continual.mixins import WEIGHTS
from fedkd.continual.reopened import Reopenable, Reopened
from fedkd.plugins import hyperparameters
from fedkd.training import OptimizerSpec


@hyperparameters
class SSNeT(Reopenable, SupermaskLearner):
    """Find a task's mask as in SupSup, then train its weights.

    ::

        first   M_t = top `density` share of |S_t| in each layer    S_t learns, w stays as it is
        then    w ← w − lr · ∇L(f(x; w ⊙ M_t)) ⊙ M_t                w learns, M_t stays as it is

    Weights of earlier masks change too, so SSNeT forgets, unlike `exssnet`. As in the authors' code, weights
    start at the signed constant of SupSup.
    """

    name: ClassVar[str] = "ssnet"
    recordable: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Yadav & Bansal, Exclusive Supermask Subnetwork Training for Continual Learning, 2022, "
        "arXiv 2210.10209"
    )

    traits: ClassVar[LearnerTraits] = replace(
        SupermaskLearner.traits,
        withholds_masks="trains weights of earlier masks, so that clients' weights differ",
    )

    mask_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of a task's epochs, over all its rounds, that finds the mask: rounded, at least one. One or more
    are left for the weights, unless the share is 1 (SupSup) or the task has a single epoch. Masks are
    slower to find than weights to train: go below 0.5 only with tens of epochs."""

    def phase_of(self, epoch: int, epochs: int) -> str:
        """Return whether an epoch of the task trains scores or weights."""
        return MASK if epoch < self.mask_epochs(epochs) else WEIGHTS

    def mask_epochs(self, epochs: int) -> int:
        """Return the number of a task's epochs that train scores."""
        if self.mask_share == 1.0 or epochs < 2:
            return epochs
        return min(max(floor(self.mask_share * epochs + 0.5), 1), epochs - 1)

    def begin_phase(self, context: LearnerContext) -> None:
        """Settle the mask before weights are trained under it."""
        super().begin_phase(context)
        if context.phase == WEIGHTS:
            self.memory(context).settle(context.task, keep_scores=self.kkt)

    def trainable(self, context: LearnerContext) -> Tensors:
        """Return the task's scores, or all masked weights."""
        return self.memory(context).weights if context.phase == WEIGHTS else super().trainable(context)

    def optimizer(self, context: LearnerContext, spec: OptimizerSpec) -> OptimizerSpec:
        """Return the scenario's optimiser for weights, without weight decay."""
        if context.phase == WEIGHTS:
            return replace(spec, weight_decay=0.0)
        return super().optimizer(context, spec)

    def reopen(self, context: LearnerContext, task: int) -> Reopened | None:
        """Return an old task whose exclusive weights may change."""
        if not self.memory(context).is_settled(task):
            return None
        reopened = ReopenedWeights(self, context, task, context.task + 1)
        return reopened if reopened.has_any else None


@hyperparameters
class ExSSNeT(SSNeT):
    """Find a task's mask as in SupSup, then train its weights outside earlier masks.

    ::

        first   M_t = top `density` share of |S_t| in each layer    S_t learns, w stays as it is
                F_t = M_t ∧ ¬(M_1 ∨ … ∨ M_{t−1})
        then    w ← w − lr · ∇L(f(x; w ⊙ M_t)) ⊙ F_t                M_t stays as it is

    A task's outputs stay the same bit for bit after its end. Free weights run out: watch `free_share`, and
    choose `density` by the number of tasks.
    """

    name: ClassVar[str] = "exssnet"
    recordable: ClassVar[bool] = True
    traits: ClassVar[LearnerTraits] = replace(SSNeT.traits, trains_masked_weights=True, withholds_masks=None)

    def begin_phase(self, context: LearnerContext) -> None:
        """Find the task's exclusive weights."""
        super().begin_phase(context)
        if context.phase == WEIGHTS:
            memory = self.memory(context)
            earlier = [memory.bits(old) for old in self.earlier(context, context.task)]
            others = memory.others()  # trained before by clients that learn the task together
            if others is not None:
                earlier.append(others)
            for layer, (name, bits) in enumerate(zip(memory.names, memory.bits(context.task), strict=True)):
                MaskState(context).free[name] = masks.free(bits, [old[layer] for old in earlier])

    def project(self, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Zero the gradients of weights outside the task's own."""
        if context.phase != WEIGHTS:
            return gradients
        return {
            name: masks.masked(gradient, masks.unpack(MaskState(context).free[name], gradient.shape))
            for name, gradient in gradients.items()
        }

    def end_task(self, context: LearnerContext) -> None:
        super().end_task(context)
        self.memory(context).set_others(None)
        MaskState(context).free.drop()
