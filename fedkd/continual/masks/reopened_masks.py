"""Reopened old tasks of supermask learners: their scores, or weights of their masks alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Step, Tensors
from fedkd.continual.masks import masks
from fedkd.continual.reopened import Reopened
from fedkd.training import OptimizerSpec

if TYPE_CHECKING:
    from fedkd.continual.masks.supermask import SupermaskLearner


class ReopenedScores(Reopened):
    """The stored scores of an old task, which may change its mask; all else stays."""

    def __init__(self, learner: SupermaskLearner, context: LearnerContext, task: int) -> None:
        super().__init__(learner, context, task)
        self._scores_of, self._memory = learner, learner.memory(context)

    def trainable(self) -> Tensors:
        return self._memory.scores(self.task)

    def task_parameters(self) -> Tensors:
        """Return the weights under the present scores' mask."""
        return self._memory.trainable_mask(self.task)

    def optimizer(self, spec: OptimizerSpec) -> OptimizerSpec:
        return self._scores_of.optimizer(self.context, spec)

    def penalty(self, step: Step) -> Tensor | None:
        """Return None: task inference learns from the task's own samples."""
        return None

    def project(self, gradients: Tensors) -> Tensors:
        return gradients

    def close(self) -> None:
        """Store the mask of the present scores."""
        self._memory.settle(self.task, keep_scores=True, again=True)


class ReopenedWeights(Reopened):
    """Weights that only an old task's mask selects, among the masks of all tasks.

    ::

        G_t = M_t ∧ ¬⋁_{j ≠ t} M_j          over all settled masks
        w ← w − lr · ∇L(f(x; w ⊙ M_t)) ⊙ G_t

    F_t is not enough, as later tasks use the weights of earlier ones. `met` is the number of tasks so far.
    """

    def __init__(self, learner: SupermaskLearner, context: LearnerContext, task: int, met: int) -> None:
        super().__init__(learner, context, task)
        self._memory = memory = learner.memory(context)
        others = [memory.bits(other) for other in range(met) if other != task and memory.is_settled(other)]
        pairs = zip(memory.weights.items(), memory.bits(task), strict=True)
        self._own = {
            name: masks.unpack(masks.free(bits, [other[layer] for other in others]), weight.shape)
            for layer, ((name, weight), bits) in enumerate(pairs)
        }

    @property
    def has_any(self) -> bool:
        """True if there are such weights."""
        return any(bool(own.any()) for own in self._own.values())

    def trainable(self) -> Tensors:
        """Return all masked weights."""
        return self._memory.weights

    def task_parameters(self) -> Tensors:
        return self._memory.masked_weights(self.task)

    def optimizer(self, spec: OptimizerSpec) -> OptimizerSpec:
        """Return the scenario's optimiser without weight decay, which would move all weights."""
        return replace(spec, weight_decay=0.0)

    def penalty(self, step: Step) -> Tensor | None:
        """Return None: task inference learns from the task's own samples."""
        return None

    def project(self, gradients: Tensors) -> Tensors:
        """Zero the gradients of weights that other masks have."""
        return {name: masks.masked(gradient, self._own[name]) for name, gradient in gradients.items()}
