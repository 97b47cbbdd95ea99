"""GPM: learn outside the input subspaces of old tasks."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedkd.continual.context import LearnerContext
from fedkd.continual.fast_steps import FastSteps, StepForm
from fedkd.continual.layers import Layer, head_names
from fedkd.continual.learner import Learner, LearnerTraits, Tensors
from fedkd.continual.mixins import task_parameters_of
from fedkd.continual.subspace.bases import (
    basis_energies,
    check_layers,
    count_leading_energies,
    draw,
    heads_are_disjoint,
    layer_inputs,
    protected_layers,
    residual_directions,
)
from fedkd.continual.subspace.fast.factored_steps import FactoredSteps
from fedkd.continual.subspace.layer_memory import SCRATCH, LayerMemory, forget_scratch, layer_memories
from fedkd.errors import UserError
from fedkd.plugins import hyperparameters

ROWS = SCRATCH + "rows"
"""The task's own outputs, ``[O]``, if tasks share none."""

Share = Annotated[float, Field(gt=0, le=1)]


@hyperparameters
class GPM(FastSteps, Learner):
    """Change weights only outside the subspaces of old tasks' layer inputs.

    After a task, with the inputs R ``[n, samples]`` of a layer (patches of a convolution) and the protected
    basis B::

        R' = R − B Bᵀ R = U Σ Vᵀ
        B ← [B, u_1 … u_k],   smallest k with ‖Bᵀ R‖² + Σ_{i ≤ k} σ_i² ≥ ε ‖R‖²

    and while learning later ones ``∇ ← ∇ − ∇ B Bᵀ``. Changes by Adam, momentum and weight decay obey it too.

    If tasks have their own output units, the output layer is not projected: rows of other tasks stay
    unchanged. Biases and normalisation weights freeze after the first task; each task keeps its running
    statistics.
    """

    name: ClassVar[str] = "gpm"
    recordable: ClassVar[bool] = True
    paper: ClassVar[str] = "Saha, Garg & Roy, Gradient Projection Memory for Continual Learning, ICLR 2021"
    traits: ClassVar[LearnerTraits] = LearnerTraits(projects_updates=True, task_statistics=True)
    step_form: ClassVar[StepForm[Any]] = FactoredSteps()

    threshold: Share | list[Share] = 0.97
    """ε: protected share of the energy of a layer's inputs; one number, or a list with one per protected
    layer. Higher values forget less and leave less room: 0.97 for CIFAR-100, 0.965 for 5-Datasets, 0.985
    for MiniImageNet; [0.95, 0.99, 0.99] for permuted MNIST."""
    threshold_increment: Annotated[float, Field(ge=0, le=1)] = 0.0
    """What ε grows by with every task, up to 1; 0.003 for ten tasks of CIFAR-100. Later tasks add little to a
    basis that explains most of their inputs, unless ε grows."""
    samples: Annotated[int, Field(ge=1)] = 300
    """Number of the task's samples whose inputs are measured. A basis has at most as many directions as
    inputs: with high ε take as many as the layers are wide. Convolutions see many patches per sample, so
    100 suffice."""

    def check(self, network: nn.Module) -> None:
        """Refuse grouped convolutions and weights of other kinds of layers."""
        check_layers(self.name, network)

    def prepare(self, context: LearnerContext) -> None:
        """Raise `UserError` unless there is a threshold for every layer."""
        layers = self.layers(context)
        if isinstance(self.threshold, list) and len(self.threshold) != len(layers):
            raise UserError(
                f"must be one number, or one for each of {len(layers)} layers ({', '.join(layers)}),"
                f" got {len(self.threshold)}",
                key="continual.threshold",
            )

    def layers(self, context: LearnerContext) -> dict[str, Layer]:
        """Return the layers whose gradients are projected, by name."""
        return protected_layers(context.layers, own_heads=heads_are_disjoint(context.units))

    def thresholds(self, context: LearnerContext) -> dict[str, float]:
        """Return ε of the present task by layer."""
        layers = self.layers(context)
        given = self.threshold if isinstance(self.threshold, list) else [self.threshold] * len(layers)
        grown = self.threshold_increment * context.task
        return {name: min(share + grown, 1.0) for name, share in zip(layers, given, strict=True)}

    def begin_task(self, context: LearnerContext) -> None:
        for memory in layer_memories(context):
            memory.hold()
        if self.protects(context) and heads_are_disjoint(context.units):
            rows = torch.zeros(context.outputs, device=context.device)
            context.memory[ROWS] = rows.index_fill(0, context.units[context.task], 1.0)

    def protects(self, context: LearnerContext) -> bool:
        """Return whether any direction is protected (from the second task on)."""
        return any(memory.protects for memory in layer_memories(context))

    def trainable(self, context: LearnerContext) -> Tensors:
        """Return all parameters; after the first task the layers' weights, and own heads' biases."""
        tensors = super().trainable(context)
        if not self.protects(context):
            return tensors
        names = {layer.weight_name for layer in context.layers.values()}
        if heads_are_disjoint(context.units):
            names |= head_names(context.layers)
        return {name: tensor for name, tensor in tensors.items() if name in names}

    def end_task(self, context: LearnerContext) -> None:
        """Protect the task's input directions, if it was trained."""
        x, _ = draw(context, "representation", self.samples)
        if context.phase and len(x):
            layers, thresholds = self.layers(context), self.thresholds(context)
            weights = task_parameters_of(self, context, context.task)
            for name, inputs in layer_inputs(context, layers, x, weights).items():
                self.extend(LayerMemory(context, layers[name]), inputs, thresholds[name])
        forget_scratch(context)

    def extend(self, memory: LayerMemory, inputs: Tensor, share: float) -> None:
        """Protect more directions of a layer, given R ``[n, k]`` float64 on the CPU and ε."""
        basis = memory.basis.double().cpu()
        directions, energies = residual_directions(inputs, basis)
        explained = float(basis_energies(inputs, basis).sum())
        count = count_leading_energies(energies, share * float(inputs.square().sum()) - explained)
        memory.append(directions[:, :count])

    def report(self, context: LearnerContext) -> dict[str, float]:
        """Return the number of protected directions per layer, and their share."""
        figures = {}
        for name, layer in self.layers(context).items():
            rank = LayerMemory(context, layer).basis.shape[1]
            figures[f"rank/{name}"] = float(rank)
            figures[f"protected_share/{name}"] = rank / layer.fan_in
        return figures

    def project(self, context: LearnerContext, gradients: Tensors) -> Tensors:
        return {**gradients, **self.projected(context, gradients)}

    def project_update(self, context: LearnerContext, changes: Tensors) -> Tensors:
        return self.projected(context, changes)

    def projected(self, context: LearnerContext, gradients: Mapping[str, Tensor]) -> Tensors:
        """Return ``∇ − ∇ B Bᵀ`` of gradients or changes that are not free."""
        left = {}
        for memory in layer_memories(context):
            name = memory.layer.weight_name
            if name in gradients and memory.protects:
                gradient = gradients[name]
                left[name] = memory.projection(memory.layer.matrix(gradient)).view_as(gradient)
        rows = context.memory.get(ROWS)
        if rows is not None:
            for name in head_names(context.layers) & gradients.keys():
                gradient = gradients[name]
                left[name] = gradient * rows.view(-1, *[1] * (gradient.dim() - 1))
        return left
