"""CUBER: let a new task improve related old ones."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.fast_steps import StepForm
from fedkd.continual.learner import Tensors
from fedkd.continual.mixins import Phases
from fedkd.continual.reopened import Reopenable, Reopened
from fedkd.continual.subspace.bases import draw, mean_gradients
from fedkd.continual.subspace.fast.coordinate_steps import CoordinateSteps
from fedkd.continual.subspace.layer_memory import SCRATCH, LayerMemory, layer_memories
from fedkd.continual.subspace.reopened_subspace import ReopenedSubspace
from fedkd.continual.subspace.trgp import TRGP
from fedkd.plugins import hyperparameters
from fedkd.training import OptimizerSpec

RATE = SCRATCH + "rate"
"""Learning rate."""
DRIFTS = SCRATCH + "drifts"
"""Present if the optimiser may leave the gradient's subspace."""
NO_FORGETTING, FORWARD, BACKWARD = 1, 2, 3
"""The regimes R1, R2 and R3."""


@hyperparameters
class CUBER(Phases, Reopenable, TRGP):
    """Extend TRGP by changes in old tasks' subspaces that should lower their loss.

    With G a layer's mean gradient at the start of a task, and G_j that of old task j at its end, the old task
    has one of three regimes in that layer:

    - R1, no forgetting, if ``‖G B_j B_jᵀ‖ ≤ ε1 ‖G‖``: S_j, the span of B_j, is projected out.
    - R2, forward transfer, if ``>`` and ``⟨G_j, G⟩ < ε2 ‖G_j‖ ‖G‖``: the same, and Q_j is learned.
    - R3, backward transfer, if ``>`` and ``≥``: Q_j is learned. S_j is *not* projected out except for
      directions shared with other tasks' bases, and the loss gets ``λ ‖(w − w_start) B_j B_jᵀ‖``.

    At most two tasks a layer are in R2 or R3, those with the largest projections. Every step uses the batch's
    gradient as G. An R3 task with too low a correlation moves to R2 for the rest of the task.

    The norm has no gradient at its centre, so the step is implicit. The gradient ``λ d / ‖d‖`` is taken at
    the end of the step, ``d = (w − w_start − lr ∇) B_j B_jᵀ``, and cut to ``d / lr``. For SGD this is a
    proximal step: nothing moves within S_j as long as ``‖∇ B_j B_jᵀ‖ ≤ λ``. Gradients of stored tasks go
    through their own Q.
    """

    name: ClassVar[str] = "cuber"
    recordable: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Lin, Yang, Fan & Zhang, Beyond Not-Forgetting: Continual Learning with Backward Knowledge Transfer,"
        " NeurIPS 2022, arXiv 2211.00789"
    )

    step_form: ClassVar[StepForm[Any]] = CoordinateSteps()

    correlation: Annotated[float, Field(ge=-1)] = 0.0
    """ε2: least cosine between old and new gradients at which old weights may change. 0 asks for any
    agreement; higher values are more careful; above 1 old weights never change, as in TRGP."""
    strength: Annotated[float, Field(ge=0)] = 1.0
    """λ: strength that holds weights back within the subspaces of R3; 0 leaves them free, a large value is
    TRGP. Nothing moves if a layer's gradient norm there is below it. The paper gives no value: sweep
    powers of ten around 1. Small batches disagree by chance and end R3 within a few steps; with weak λ
    those steps can cost old tasks more than they give."""

    def begin_task(self, context: LearnerContext) -> None:
        """Decide on the regime of every old task in every layer."""
        for layer in self.layers(context).values():
            LayerMemory(context, layer).begin_regimes(NO_FORGETTING)
        super().begin_task(context)

    def relate(self, memory: LayerMemory, gradient: Tensor) -> list[int]:
        """Return the tasks in R2 and R3 (see `TRGP.relate`), and free the subspaces of R3."""
        related = super().relate(memory, gradient)
        for old in related:
            agrees = self.agree(memory, old, gradient)
            memory.regimes[:, old] = BACKWARD if agrees else FORWARD
            if agrees:
                memory.loosen(old)
        memory.hold_all_but_flexible()
        return related

    def agree(self, memory: LayerMemory, old: int, gradient: Tensor) -> bool:
        """Return whether ``⟨G_j, G⟩ ≥ ε2 ‖G_j‖ ‖G‖`` for an old task j and a gradient G ``[out, n]``."""
        least = self.correlation * memory.gradient_length(old) * gradient.norm()
        return bool(torch.dot(memory.gradient(old).flatten(), gradient.flatten()) >= least)

    def optimizer(self, context: LearnerContext, spec: OptimizerSpec) -> OptimizerSpec:
        """Note the learning rate, which the step of λ depends on."""
        dtype = next(context.network.parameters()).dtype
        context.memory[RATE] = torch.tensor(spec.lr, dtype=dtype, device=context.device)
        context.memory.pop(DRIFTS, None)
        if spec.name != "sgd" or spec.momentum > 0.0 or spec.weight_decay > 0.0:
            context.memory[DRIFTS] = torch.ones(1, dtype=torch.bool)
        return spec

    def rate(self, context: LearnerContext) -> Tensor:
        """Return the learning rate of the present phase, a scalar."""
        return context.memory[RATE]

    def drifts(self, context: LearnerContext) -> bool:
        """Return whether the optimiser may leave the gradient's subspace."""
        return DRIFTS in context.memory

    def end_task(self, context: LearnerContext) -> None:
        """Store the task's basis and gradient."""
        x, labels = draw(context, "gradient", self.samples)
        if context.phase:
            layers = self.layers(context)
            found = mean_gradients(
                context, layers, x, labels, lambda: self.scaled(context, context.task, through=layers)
            )
            for name, gradient in found.items():
                LayerMemory(context, layers[name]).keep_gradient(gradient)
        super().end_task(context)

    def reopen(self, context: LearnerContext, task: int) -> Reopened | None:
        """Return an old task that fusion may change within its own directions, in regime R3."""
        reopened = ReopenedSubspace(self, context, task)
        return reopened if reopened.has_any else None

    def report(self, context: LearnerContext) -> dict[str, float]:
        """Return TRGP's figures, and the old tasks' first and present regimes by layer."""
        figures = super().report(context)
        for name, layer in self.layers(context).items():
            at_start, now = LayerMemory(context, layer).regimes.tolist()
            for old in range(len(now)):
                figures[f"regime/{name}/{old}"] = float(now[old])
                figures[f"regime_at_start/{name}/{old}"] = float(at_start[old])
        return figures

    def task_parameters(self, context: LearnerContext, task: int) -> Tensors:
        """Return ``w̃``; the gradient of w goes through Q unless it is projected out."""
        flexible = [memory.layer.name for memory in layer_memories(context) if memory.flexible]
        return self.scaled(context, task, through=flexible if task == context.task else ())

    def project(self, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Return gradients outside protected directions, with the gradient of the λ term."""
        flexible = {
            memory.layer.weight_name: memory
            for memory in layer_memories(context)
            if memory.layer.weight_name in gradients and memory.flexible
        }
        for name, memory in flexible.items():
            gradient = memory.layer.matrix(gradients[name])
            failed = [old for old in memory.flexible if not self.agree(memory, old, gradient)]
            self.move_to_forward(memory, failed)
        filtered = super().project(context, gradients)
        for name, memory in flexible.items():
            held = self.held_back(memory, memory.layer.matrix(filtered[name]))
            filtered[name] = held.view_as(filtered[name])
        return filtered

    def move_to_forward(self, memory: LayerMemory, olds: Sequence[int]) -> None:
        """Move some of a layer's tasks from R3 to R2."""
        for old in olds:
            memory.fasten(old)
            memory.regimes[1, old] = FORWARD
        if olds:
            memory.hold_all_but_flexible()

    def held_back(self, memory: LayerMemory, gradient: Tensor) -> Tensor:
        """Return a gradient ``[out, n]`` with ``λ d / ‖d‖`` of every task in R3 added, cut to ``d / lr``."""
        flexible = memory.flexible  # the step may have moved the last one to R2
        if self.strength == 0.0 or not flexible:  # 0 / 0 is not a number
            return gradient
        region, rate = memory.trust_region(memory.context.task), self.rate(memory.context)
        assert region is not None
        basis = region.basis
        places = dict(zip(memory.related(memory.context.task), region.places, strict=True))
        # All bases are columns of one orthonormal matrix, so both are in their coordinates, [out, R].
        moved = memory.layer.matrix(memory.layer.module.weight.detach()) - memory.start
        arrivals = (moved - rate * gradient) @ basis
        pulls = torch.zeros_like(arrivals)
        for old in flexible:
            place = places[old]
            arrival = arrivals.index_select(1, place)
            pull = torch.minimum(self.strength / arrival.norm(), 1.0 / rate) * arrival
            pulls = pulls.index_add(1, place, pull)
            # One after another, so that the second does not undo the first in a shared direction.
            arrivals = arrivals.index_add(1, place, pull * -rate)
        return torch.addmm(gradient, pulls, basis.T)
