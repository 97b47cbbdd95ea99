"""ExSSNeT: find a mask, then train the weights under it that no earlier task has."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic.dataclasses import dataclass

from fedkd.continual import masks
from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import LearnerTraits, Tensors
from fedkd.continual.mixins import WEIGHTS
from fedkd.continual.ssnet import SSNeT
from fedkd.hyperparameters import STRICT

FREE = "free"
"""The bits of the present task's own weights; forgotten at its end."""


@dataclass(frozen=True, config=STRICT)
class ExSSNeT(SSNeT):
    """Find a task's mask as SupSup does, then train those of its weights that no earlier mask has.

    ::

        first   M_t = top `density` share of |S_t| in each layer    S_t learns, w stays as it is
                F_t = M_t ∧ ¬(M_1 ∨ … ∨ M_{t−1})
        then    w ← w − lr · ∇L(f(x; w ⊙ M_t)) ⊙ F_t                M_t stays as it is

    The weights that earlier tasks trained serve the new one as they are, and nothing is ever forgotten: the
    outputs for a task are the same bits as when it ended. What runs out is room: watch `free_share`, and
    choose `density` by the number of tasks.
    """

    name: ClassVar[str] = "exssnet"
    recordable: ClassVar[bool] = True
    traits: ClassVar[LearnerTraits] = replace(SSNeT.traits, trains_masked_weights=True, withholds_masks=None)

    def begin_phase(self, context: LearnerContext) -> None:
        """Find out which weights under the mask are the task's own."""
        super().begin_phase(context)
        if context.phase == WEIGHTS:
            memory = self.memory(context)
            earlier = [memory.bits(old) for old in self.earlier(context, context.task)]
            others = memory.others()  # what clients that learn the task together have trained before it
            if others is not None:
                earlier.append(others)
            for layer, (name, bits) in enumerate(zip(memory.names, memory.bits(context.task), strict=True)):
                context.memory[f"{FREE}/{name}"] = masks.free(bits, [old[layer] for old in earlier])

    def project(self, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Leave weights without a gradient that are not the task's own."""
        if context.phase != WEIGHTS:
            return gradients
        return {
            name: masks.masked(gradient, masks.unpack(context.memory[f"{FREE}/{name}"], gradient.shape))
            for name, gradient in gradients.items()
        }

    def end_task(self, context: LearnerContext) -> None:
        """Keep the mask alone."""
        super().end_task(context)
        self.memory(context).set_others(None)
        for name in self.memory(context).names:
            context.memory.pop(f"{FREE}/{name}", None)
