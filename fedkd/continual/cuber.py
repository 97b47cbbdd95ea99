"""CUBER: let a new task improve old ones that it agrees with."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.gpm import SCRATCH
from fedkd.continual.layers import Layer
from fedkd.continual.learner import Tensors
from fedkd.continual.subspace import draw, mean_gradients
from fedkd.continual.thin import ThinWeight
from fedkd.continual.trgp import COLUMNS, TRGP
from fedkd.hyperparameters import STRICT
from fedkd.training.optimizer import OptimizerSpec

GRADIENT = "gradient/"
"""Gradient ``[out, n]`` of a task at its own end: ``gradient/{task}/{layer}``."""
REGIME = "regime/"
"""Regimes of all old tasks in the last task, by layer, ``[2, task]`` uint8: at its start, and now."""
FLEXIBLE = SCRATCH + "flexible/"
"""Length of G_j of the old tasks that are in R3 now, by layer and task."""
START = SCRATCH + "start/"
"""Weights ``[out, n]`` at the start of the task, of layers that have tasks in R3."""
RATE = SCRATCH + "rate"
"""Learning rate."""

NO_FORGETTING, FORWARD, BACKWARD = 1, 2, 3
"""The regimes R1, R2 and R3."""


@dataclass(frozen=True, config=STRICT)
class CUBER(TRGP):
    """TRGP that also lets w change within the subspaces of old tasks whose loss the change should lower.

    With G the mean gradient of a layer at the start of a task, and G_j that of old task j at its own end, the
    old task is in one of three regimes in that layer:

    - R1, no forgetting, if ``‖G B_j B_jᵀ‖ ≤ ε1 ‖G‖``: S_j, the span of B_j, is projected out.
    - R2, forward transfer, if ``>`` and ``⟨G_j, G⟩ < ε2 ‖G_j‖ ‖G‖``: the same, and Q_j is learned.
    - R3, backward transfer, if ``>`` and ``≥``: Q_j is learned, S_j is *not* projected out but for what it
      shares with other tasks' bases, and the loss gets ``λ ‖(w − w_start) B_j B_jᵀ‖``.

    At most two tasks a layer are in R2 or R3, those with the largest projections. At every step the batch's
    own gradient takes the place of G, and an R3 task whose correlation fails moves to R2 for good.

    The norm has no gradient at its centre, where every task starts, and an explicit step with a large λ would
    jump over it and back for ever. So the step is implicit: the gradient ``λ d / ‖d‖`` is taken where the
    step arrives, ``d = (w − w_start − lr ∇) B_j B_jᵀ``, and cut to ``d / lr``, which arrives at the centre.
    For SGD this is the proximal step: nothing moves within S_j as long as ``‖∇ B_j B_jᵀ‖ ≤ λ``. Gradients of
    stored tasks go through their own Q, since that is how their loss depends on w.
    """

    name: ClassVar[str] = "cuber"
    paper: ClassVar[str] = (
        "Lin, Yang, Fan & Zhang, Beyond Not-Forgetting: Continual Learning with Backward Knowledge Transfer,"
        " NeurIPS 2022, arXiv 2211.00789"
    )

    correlation: Annotated[float, Field(ge=-1)] = 0.0
    """ε2: the least cosine between old and new gradients for which old weights may change. 0 asks for
    agreement at all; higher is more careful; above 1 they never may, as in TRGP."""
    strength: Annotated[float, Field(ge=0)] = 1.0
    """λ: how hard weights are held back within the subspaces of R3; 0 leaves them free, a large one is TRGP.
    It is compared with the norm of a layer's gradient there, below which nothing moves: the paper does not
    tell it, so sweep it over powers of ten around 1. Small batches disagree by chance and end R3 within a few
    steps; with weak λ those few can cost old tasks more than they give."""

    # The course of a task -----------------------------------------------------------------------------

    def begin_task(self, context: LearnerContext) -> None:
        """Decide on the regime of every old task in every layer."""
        for name in self.layers(context):
            regimes = torch.full((2, context.task), NO_FORGETTING, dtype=torch.uint8, device=context.device)
            context.memory[REGIME + name] = regimes
        super().begin_task(context)

    def relate(self, context: LearnerContext, layer: Layer, gradient: Tensor) -> list[int]:
        """Return the tasks in R2 and R3 (see `TRGP.relate`), and let R3 go."""
        related = super().relate(context, layer, gradient)
        for old in related:
            kept = context.memory[f"{GRADIENT}{old}/{layer.name}"]
            length = kept.norm()
            agrees = self._agrees(kept, length, gradient)
            context.memory[REGIME + layer.name][:, old] = BACKWARD if agrees else FORWARD
            if agrees:
                context.memory[f"{FLEXIBLE}{layer.name}/{old}"] = length
                weight = layer.matrix(layer.module.weight)
                context.memory[START + layer.name] = weight.detach().clone()
        self._protect_all_but_flexible(context, layer)
        return related

    def _agrees(self, kept: Tensor, length: Tensor, gradient: Tensor) -> bool:
        return bool((kept * gradient).sum() >= self.correlation * length * gradient.norm())

    def _flexible(self, context: LearnerContext, name: str) -> list[int]:
        if START + name not in context.memory:  # no task has been in R3
            return []
        return [old for old in range(context.task) if f"{FLEXIBLE}{name}/{old}" in context.memory]

    def _protect_all_but_flexible(self, context: LearnerContext, layer: Layer) -> None:
        flexible = self._flexible(context, layer.name)
        whole = self.basis(context, layer)
        held = torch.zeros(whole.shape[1], dtype=torch.bool, device=whole.device)
        for old in range(context.task):
            columns = context.memory.get(f"{COLUMNS}{old}/{layer.name}")
            if old not in flexible and columns is not None:
                held[columns.long()] = True
        if whole.shape[1]:
            self.protect(context, layer.name, whole if not flexible else whole[:, held].contiguous())

    def optimizer(self, context: LearnerContext, spec: OptimizerSpec) -> OptimizerSpec:
        """Take down the learning rate, which the step of λ depends on."""
        context.memory[RATE] = torch.tensor(spec.lr, device=context.device)
        return spec

    def end_task(self, context: LearnerContext) -> None:
        """Keep the task's gradient besides its basis."""
        x, labels = draw(context, "gradient", self.samples)
        if context.phase:
            layers = self.layers(context)
            found = mean_gradients(
                context, layers, x, labels, lambda: self.scaled(context, context.task, through=layers)
            )
            for name, gradient in found.items():
                context.memory[f"{GRADIENT}{context.task}/{name}"] = gradient
        super().end_task(context)

    def report(self, context: LearnerContext) -> dict[str, float]:
        """Return what TRGP tells, and every old task's regime at the start and now, by layer."""
        figures = super().report(context)
        for name in self.layers(context):
            at_start, now = context.memory[REGIME + name].tolist()
            for old in range(len(now)):
                figures[f"regime/{name}/{old}"] = float(now[old])
                figures[f"regime_at_start/{name}/{old}"] = float(at_start[old])
        return figures

    # A step -------------------------------------------------------------------------------------------

    def effective(self, context: LearnerContext, task: int) -> Tensors:
        """Return ``w̃``; the gradient of w goes through Q where it is not projected out."""
        if task != context.task:
            return self.scaled(context, task)
        thin = self.thin_weights(context)
        through = [name for name in context.layers if self._flexible(context, name)]
        return {**self.scaled(context, task, through, besides=thin), **thin}

    def thin(self, context: LearnerContext, layer: Layer) -> ThinWeight | None:
        """Return None for layers with tasks in R3, whose ``w B_j`` change."""
        return None if self._flexible(context, layer.name) else super().thin(context, layer)

    def filter(self, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Return gradients outside of what is protected, and that of λ."""
        flexible = {name for name in context.layers if self._flexible(context, name)}
        for name in flexible:
            layer = context.layers[name]
            if layer.weight_name in gradients:
                self._move_to_forward(context, layer, layer.matrix(gradients[layer.weight_name]))
        filtered = super().filter(context, gradients)
        # All bases are columns of one orthonormal matrix, so what pulls within one leaves the others alone.
        for name in flexible:
            layer = context.layers[name]
            gradient = filtered.get(layer.weight_name)
            if gradient is not None:
                filtered[layer.weight_name] = self._held_back(context, layer, gradient).view_as(gradient)
        return filtered

    def _move_to_forward(self, context: LearnerContext, layer: Layer, gradient: Tensor) -> None:
        flexible = self._flexible(context, layer.name)
        failed = [
            old
            for old in flexible
            if not self._agrees(
                context.memory[f"{GRADIENT}{old}/{layer.name}"],
                context.memory[f"{FLEXIBLE}{layer.name}/{old}"],
                gradient,
            )
        ]
        for old in failed:
            del context.memory[f"{FLEXIBLE}{layer.name}/{old}"]
            context.memory[REGIME + layer.name][1, old] = FORWARD
        if failed:
            self._protect_all_but_flexible(context, layer)

    def _held_back(self, context: LearnerContext, layer: Layer, gradient: Tensor) -> Tensor:
        gradient = layer.matrix(gradient)
        if self.strength == 0.0:  # nothing over nothing is not a number
            return gradient
        rate = context.memory[RATE]
        for old in self._flexible(context, layer.name):
            basis = self.basis_of(context, layer, old)
            moved = layer.matrix(layer.module.weight.detach()) - context.memory[START + layer.name]
            arrival = (moved - rate * gradient) @ basis
            pull = torch.minimum(self.strength / arrival.norm(), 1.0 / rate)
            # One after another: the second must not undo again what the first has of a shared direction.
            gradient = torch.addmm(gradient, pull * arrival, basis.T)
        return gradient
