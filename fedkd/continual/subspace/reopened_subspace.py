"""A reopened old task of CUBER: fusion changes its exclusive directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.layers import head_names
from fedkd.continual.learner import Step, Tensors
from fedkd.continual.reopened import Reopened
from fedkd.continual.subspace.bases import heads_are_disjoint, relatedness
from fedkd.continual.subspace.layer_memory import LayerMemory
from fedkd.continual.subspace.projection import project_onto

if TYPE_CHECKING:
    from fedkd.continual.subspace.cuber import CUBER


class ReopenedSubspace(Reopened):
    """Changes of weights within the exclusive directions of an old task t, in regime R3 alone.

    With G the gradient of a step of guidance in a layer, B_t the task's basis, E_t those of its columns that
    no other task's basis has, and G_t the task's own gradient at its end::

        ∇ ← G E_t E_tᵀ     if ‖G B_t B_tᵀ‖ > ε1 ‖G‖ and ⟨G_t, G⟩ ≥ ε2 ‖G_t‖ ‖G‖, else 0

    so w B_j stays for every other task j. A layer stays if a later task has learned a Q of S_t. Outputs of
    the task alone change in the same steps as the layers.
    """

    def __init__(self, learner: CUBER, context: LearnerContext, task: int) -> None:
        super().__init__(learner, context, task)
        self._cuber = learner
        self._open: dict[str, tuple[LayerMemory, Tensor]] = {}  # by the weight's name, with E_t
        for layer in learner.layers(context).values():
            memory = LayerMemory(context, layer)
            own = own_directions(memory, task)
            if own.shape[1] and memory.keeps_gradient(task):
                self._open[layer.weight_name] = (memory, own)
        heads = head_names(context.layers) if heads_are_disjoint(context.units) else set()
        self._heads = {name: p for name, p in context.network.named_parameters() if name in heads}
        self._rows = torch.zeros(context.outputs, dtype=torch.bool, device=context.device)
        self._rows[context.units[task]] = True

    @property
    def has_any(self) -> bool:
        """True if any layer may change."""
        return bool(self._open)

    def trainable(self) -> Tensors:
        """Return the weights of layers with exclusive directions, and of the task's own outputs."""
        return {name: memory.layer.module.weight for name, (memory, _) in self._open.items()} | self._heads

    def task_parameters(self) -> Tensors:
        """Return ``w̃``; the gradient of w goes through Q, as the old task's outputs do."""
        through = [memory.layer.name for memory, _ in self._open.values()]
        return self._cuber.scaled(self.context, self.task, through=through)

    def penalty(self, step: Step) -> Tensor | None:
        """Return None."""
        return None

    def project(self, gradients: Tensors) -> Tensors:
        """Return gradients in regime R3 within the task's own directions, else zero."""
        left, agreed = {}, False
        for name, (memory, own) in self._open.items():
            if name not in gradients:
                continue
            gradient = memory.layer.matrix(gradients[name])
            enough = relatedness(gradient, memory.basis_of(self.task)) > self._cuber.relatedness
            lets = enough and self._cuber.agree(memory, self.task, gradient)
            inside = project_onto(gradient, own) if lets else torch.zeros_like(gradient)
            left[name] = inside.view_as(gradients[name])
            agreed |= lets
        return left | {
            name: self._of_own_rows(gradients[name], agreed) for name in self._heads if name in gradients
        }

    def project_update(self, changes: Tensors) -> Tensors:
        """Return changes within the task's own directions, and of its own outputs."""
        left = {
            name: project_onto(memory.layer.matrix(changes[name]), own).view_as(changes[name])
            for name, (memory, own) in self._open.items()
        }
        return left | {name: self._of_own_rows(changes[name], True) for name in self._heads}

    def _of_own_rows(self, values: Tensor, any_: bool) -> Tensor:
        rows = self._rows if any_ else torch.zeros_like(self._rows)
        return values * rows.view(-1, *[1] * (values.dim() - 1))


def own_directions(memory: LayerMemory, task: int) -> Tensor:
    """Return E_t ``[n, e]``, the exclusive columns of a task's basis; often none."""
    columns, context = memory.columns(task), memory.context
    if columns is None:
        return memory.basis[:, :0]
    found = {other: memory.columns(other) for other in range(context.task + 1)}
    ended = {other: own for other, own in found.items() if own is not None}
    if any(task in memory.related(later) for later in ended if later > task):
        return memory.basis[:, :0]
    alone = torch.zeros(memory.basis.shape[1], dtype=torch.bool, device=memory.basis.device)
    alone[columns.long()] = True
    for other, own in ended.items():
        if other != task:
            alone[own.long()] = False
    return memory.basis[:, alone].contiguous()
