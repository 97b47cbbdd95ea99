"""TRGP: scale weights within the subspaces of related old tasks."""

from collections.abc import Collection
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.fast_steps import StepForm
from fedkd.continual.learner import LearnerTraits, Tensors
from fedkd.continual.mixins import TaskParameters
from fedkd.continual.subspace.bases import (
    NOISE,
    basis_energies,
    count_leading_energies,
    draw,
    mean_gradients,
    relatedness,
    residual_directions,
)
from fedkd.continual.subspace.fast.factored_steps import FactoredSteps
from fedkd.continual.subspace.gpm import GPM
from fedkd.continual.subspace.layer_memory import LayerMemory, layer_memories, scales_of
from fedkd.plugins import hyperparameters


@hyperparameters
class TRGP(TaskParameters, GPM):
    """Extend GPM by scaled subspaces of related old tasks ("trust region").

    With G the mean gradient of a layer at the start of a task, an old task j is related if
    ``‖G B_j B_jᵀ‖ > ε1 ‖G‖``; the two largest count. For each of them a matrix Q_j is learned, from the
    identity, and the task sees ::

        w̃ = w + Σ_j [w B_j Q_j B_jᵀ − w B_j B_jᵀ]

    while w changes only outside the union of all bases, so ``w B_j`` stays. A task's basis is chosen among
    the union's columns o, by energies ``oᵀ R Rᵀ o``, and the new directions, by squared singular values. The
    largest are taken until their share of ``‖R‖²`` is ε. All new directions join the union, so a task's basis
    is a list of its columns.

    The gradient of w bypasses Q. Q is trained by the same optimiser; weight decay pulls it to 0, not to the
    identity. B and Q fit the client's own weights, so strategies that average weights are refused.
    """

    name: ClassVar[str] = "trgp"
    recordable: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Lin, Yang, Fan & Zhang, TRGP: Trust Region Gradient Projection for Continual Learning, ICLR 2022"
    )

    traits: ClassVar[LearnerTraits] = replace(GPM.traits, scales_own_subspaces=True)
    step_form: ClassVar[StepForm[Any]] = FactoredSteps()

    relatedness: Annotated[float, Field(ge=0)] = 0.5
    """ε1: least share of the new gradient's norm within an old task's subspace at which that task is related;
    0.2 for permuted MNIST, 0.5 elsewhere. Lower values reuse more, at a matrix Q for every pair; from 1 on
    nothing is related, as in GPM."""
    related_tasks: Annotated[int, Field(ge=1)] = 2
    """The most old tasks that a layer may be related to. Each costs two products with a thin matrix a step;
    the paper takes 2."""

    def begin_task(self, context: LearnerContext) -> None:
        """Find the related tasks of every layer."""
        super().begin_task(context)
        if self.protects(context):
            layers = self.layers(context)
            x, labels = draw(context, "gradient", self.samples)
            for name, gradient in mean_gradients(context, layers, x, labels, dict).items():
                self.relate(LayerMemory(context, layers[name]), gradient)

    def relate(self, memory: LayerMemory, gradient: Tensor) -> list[int]:
        """Return the related tasks of a layer by its gradient G ``[out, n]``, and begin to scale them."""
        shares = {old: relatedness(gradient, memory.basis_of(old)) for old in memory.learned}
        enough = [old for old, share in shares.items() if share > self.relatedness]
        related = sorted(enough, key=lambda old: -shares[old])[: self.related_tasks]
        if related:
            memory.relate_to(related)
        return related

    def trainable(self, context: LearnerContext) -> Tensors:
        """Return GPM's tensors and the present task's matrices Q."""
        return {**super().trainable(context), **scales_of(context, context.task)}

    def end_task(self, context: LearnerContext) -> None:
        """Choose the task's basis and keep its matrices Q, if anything was trained."""
        super().end_task(context)
        for name, scale in scales_of(context, context.task).items():
            scale.requires_grad_(False)
            if not context.phase:
                del context.memory[name]

    def extend(self, memory: LayerMemory, inputs: Tensor, share: float) -> None:
        """Choose the task's basis among old and new directions of a layer (see `GPM.extend`)."""
        basis = memory.basis.double().cpu()
        directions, new = residual_directions(inputs, basis)
        energies = torch.cat([basis_energies(inputs, basis), new])
        order = energies.argsort(descending=True, stable=True)
        total = float(inputs.square().sum())
        count = count_leading_energies(energies[order], share * total)
        # The union is rounded to float32: its columns may hold less than all of the inputs they span, and
        # some of those that are orthogonal to them.
        count = min(count, int((energies > NOISE * total).sum()))
        chosen = order[:count].sort().values
        # New directions are sorted by energy, so that those chosen are the first ones.
        fresh = int((chosen >= basis.shape[1]).sum())
        memory.append(directions[:, :fresh])
        memory.keep_columns(chosen)

    def report(self, context: LearnerContext) -> dict[str, float]:
        """Return GPM's figures, the task's rank, and its number of related tasks."""
        figures = super().report(context)
        for name, layer in self.layers(context).items():
            memory = LayerMemory(context, layer)
            columns = memory.columns(context.task)
            if columns is not None:
                figures[f"task_rank/{name}"] = float(len(columns))
            figures[f"related/{name}"] = float(len(memory.related(context.task)))
        return figures

    def task_parameters(self, context: LearnerContext, task: int) -> Tensors:
        """Return ``w̃`` of the layers in which a task is related to others."""
        return self.scaled(context, task)

    def scaled(self, context: LearnerContext, task: int, through: Collection[str] = ()) -> Tensors:
        """Return ``w̃`` by the names of weights; its gradient goes through Q in the layers named `through`."""
        weights = {}
        for memory in layer_memories(context):
            layer, region = memory.layer, memory.trust_region(task)
            if region is not None:
                weight = layer.module.weight
                weights[layer.weight_name] = region.scaled(weight, through=layer.name in through)
        return weights
