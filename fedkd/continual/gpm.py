"""GPM: learn outside the subspaces that the inputs of old tasks span."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fedkd.continual.context import LearnerContext
from fedkd.continual.layers import Layer
from fedkd.continual.learner import Learner, Tensors
from fedkd.continual.subspace import (
    check_layers,
    complement,
    draw,
    energies_along,
    has_own_heads,
    layer_inputs,
    number_needed,
    project_onto,
    project_out,
    residual_directions,
)
from fedkd.continual.thin import ThinWeight
from fedkd.errors import UserError
from fedkd.hyperparameters import STRICT

BASIS = "basis/"
"""Orthonormal columns ``[n, r]`` of all that is protected, by layer."""
SCRATCH = "scratch/"
"""What is forgotten at the end of a task."""
INSIDE, OUTSIDE = SCRATCH + "inside/", SCRATCH + "outside/"
"""What gradients are projected with if not `BASIS`: part of it, or the complement of what is protected."""
ROWS = SCRATCH + "rows"
"""Which outputs are the task's own, ``[O]``, where no two tasks share any."""

Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class GPM(Learner):
    """Change weights only outside the subspaces that the layers' inputs of old tasks lie in.

    After a task, for the inputs R ``[n, samples]`` of every layer (patches of a convolution) and the basis B
    of what is protected already::

        R' = R − B Bᵀ R = U Σ Vᵀ
        B ← [B, u_1 … u_k],   smallest k with ‖Bᵀ R‖² + Σ_{i ≤ k} σ_i² ≥ ε ‖R‖²

    and while learning later ones ``∇ ← ∇ − ∇ B Bᵀ``. Changes of the weights obey it too, so Adam, momentum
    and weight decay cannot leave the subspace.

    Where every task has output units of its own, the output layer is not projected: the rows of other tasks
    are left alone. Where tasks share the units, it is a layer like any other. Biases and the weights of
    normalisation freeze after the first task; running statistics are kept for every task.
    """

    name: ClassVar[str] = "gpm"
    paper: ClassVar[str] = "Saha, Garg & Roy, Gradient Projection Memory for Continual Learning, ICLR 2021"
    confines: ClassVar[bool] = True
    task_statistics: ClassVar[bool] = True

    threshold: Share | list[Share] = 0.97
    """ε: share of the energy of a layer's inputs that is protected; one number, or a list with one for every
    protected layer. Higher forgets less and leaves less room: 0.97 for CIFAR-100, 0.965 for 5-Datasets, 0.985
    for MiniImageNet; [0.95, 0.99, 0.99] for permuted MNIST."""
    threshold_increment: Annotated[float, Field(ge=0, le=1)] = 0.0
    """What ε grows by with every task, up to 1; 0.003 for ten tasks of CIFAR-100. Later tasks add little to a
    basis that explains most of their inputs, unless ε grows."""
    samples: Annotated[int, Field(ge=1)] = 300
    """Number of the task's samples whose inputs are looked at. A basis has no more directions than there are
    inputs, so take as many as the layers are wide if ε is high; convolutions see many patches of each sample,
    and 100 will do."""

    # The network and its layers -----------------------------------------------------------------------

    def check(self, network: nn.Module) -> None:
        """Refuse layers whose inputs are not known.

        Raises:
            UserError: The network has a grouped convolution, or weights of other kinds of layers.
        """
        check_layers(self.name, network)

    def prepare(self, context: LearnerContext) -> None:
        """See that there is a threshold for every layer.

        Raises:
            UserError: There are more or fewer.
        """
        layers = self.layers(context)
        if isinstance(self.threshold, list) and len(self.threshold) != len(layers):
            raise UserError(
                f"must be one number, or one for each of {len(layers)} layers ({', '.join(layers)}),"
                f" got {len(self.threshold)}",
                key="continual.threshold",
            )

    def layers(self, context: LearnerContext) -> dict[str, Layer]:
        """Return the layers whose gradients are projected, by name."""
        own_heads = has_own_heads(context)
        return {
            name: layer
            for name, layer in context.layers.items()
            if layer.module.weight.requires_grad and not (layer.is_head and own_heads)
        }

    def thresholds(self, context: LearnerContext) -> dict[str, float]:
        """Return ε of the present task by layer."""
        layers = self.layers(context)
        given = self.threshold if isinstance(self.threshold, list) else [self.threshold] * len(layers)
        grown = self.threshold_increment * context.task
        return {name: min(share + grown, 1.0) for name, share in zip(layers, given, strict=True)}

    def basis(self, context: LearnerContext, layer: Layer) -> Tensor:
        """Return the orthonormal columns ``[n, r]`` that are protected in a layer."""
        kept = context.memory.get(BASIS + layer.name)
        return layer.module.weight.new_zeros(layer.fan_in, 0) if kept is None else kept

    # The course of a task -----------------------------------------------------------------------------

    def begin_task(self, context: LearnerContext) -> None:
        """Get the projections ready."""
        for name in context.layers:
            if BASIS + name in context.memory:
                self.protect(context, name, context.memory[BASIS + name])
        if self.protects(context) and has_own_heads(context):
            rows = torch.zeros(context.outputs, device=context.device)
            context.memory[ROWS] = rows.index_fill(0, context.units[context.task], 1.0)

    def protect(self, context: LearnerContext, name: str, basis: Tensor) -> None:
        """Project a layer's gradients outside of orthonormal columns ``[n, r]`` from now on."""
        context.memory.pop(INSIDE + name, None)
        context.memory.pop(OUTSIDE + name, None)
        if context.step_cache is not None:
            context.step_cache.pop(name, None)
        if 2 * basis.shape[1] > basis.shape[0]:
            context.memory[OUTSIDE + name] = complement(basis)
        elif basis is not context.memory[BASIS + name]:
            context.memory[INSIDE + name] = basis

    def protects(self, context: LearnerContext) -> bool:
        """Return whether there is anything to protect, which there is not in the first task."""
        return any(name.startswith(BASIS) for name in context.memory)

    def trainable(self, context: LearnerContext) -> Tensors:
        """Return all parameters; after the first task the weights of layers, and biases of own heads."""
        tensors = super().trainable(context)
        if not self.protects(context):
            return tensors
        names = {layer.weight_name for layer in context.layers.values()}
        if has_own_heads(context):
            names |= _head_names(context)
        return {name: tensor for name, tensor in tensors.items() if name in names}

    def end_task(self, context: LearnerContext) -> None:
        """Protect what the layers' inputs of the task span, unless nothing was trained."""
        x, _ = draw(context, "representation", self.samples)
        if context.phase and len(x):
            thresholds = self.thresholds(context)
            layers = self.layers(context)
            for name, inputs in layer_inputs(
                context, layers, x, self.effective(context, context.task)
            ).items():
                self.extend(context, layers[name], inputs, thresholds[name])
        for name in [name for name in context.memory if name.startswith(SCRATCH)]:
            del context.memory[name]

    def extend(self, context: LearnerContext, layer: Layer, inputs: Tensor, share: float) -> None:
        """Protect more directions of a layer.

        Args:
            context: Its memory is extended.
            layer: The layer.
            inputs: R ``[n, k]`` float64 on the CPU.
            share: ε.
        """
        basis = self.basis(context, layer).double().cpu()
        directions, energies = residual_directions(inputs, basis)
        explained = float(energies_along(inputs, basis).sum())
        count = number_needed(energies, share * float(inputs.square().sum()) - explained)
        self.append(context, layer, directions[:, :count])

    def append(self, context: LearnerContext, layer: Layer, directions: Tensor) -> None:
        """Add orthonormal columns ``[n, m]``, orthogonal to the layer's basis, to it."""
        if directions.shape[1]:
            basis = self.basis(context, layer)
            more = directions.to(dtype=basis.dtype, device=basis.device)
            context.memory[BASIS + layer.name] = torch.cat([basis, more], dim=1)

    def report(self, context: LearnerContext) -> dict[str, float]:
        """Return how many directions of every layer are protected, and their share of all."""
        figures = {}
        for name, layer in self.layers(context).items():
            rank = self.basis(context, layer).shape[1]
            figures[f"rank/{name}"] = float(rank)
            figures[f"protected_share/{name}"] = rank / layer.fan_in
        return figures

    # A step -------------------------------------------------------------------------------------------

    def effective(self, context: LearnerContext, task: int) -> Tensors:
        """Return weights that, in a training step, know what their gradients are products of."""
        return self.thin_weights(context) if task == context.task else {}

    def thin_weights(self, context: LearnerContext) -> Tensors:
        """Return the weights of those layers that have few inputs; in training steps only."""
        weights: Tensors = {}
        if context.step_cache is None:
            return weights
        for name, layer in context.layers.items():
            if BASIS + name in context.memory:
                if name not in context.step_cache:
                    context.step_cache[name] = self.thin(context, layer)
                weight = context.step_cache[name]
                if weight is not None:
                    weight.forget()
                    weights[layer.weight_name] = weight
        return weights

    def thin(self, context: LearnerContext, layer: Layer) -> ThinWeight | None:
        """Return a protected layer's weight for steps of few inputs; None: there are too many."""
        most = self.most_inputs(context, layer)
        weight = layer.module.weight
        return ThinWeight.make(weight, lambda: weight, most) if context.batch_size <= most else None

    def most_inputs(self, context: LearnerContext, layer: Layer, scaled: int = 0) -> int:
        """Return up to how many inputs it takes less to transform those than the weight and its gradient.

        Args:
            context: Its memory has the bases.
            layer: A protected one; 0 if it is a convolution, which has many inputs.
            scaled: Number of directions in which the weight is scaled.
        """
        if not isinstance(layer.module, nn.Linear):
            return 0
        rank, outputs = self._projection(context, layer.name)[1].shape[1], layer.module.out_features
        # The gradient takes two products with the projection's basis, and three with that of the scales. The
        # inputs take two, and one, and one with the gradient of the outputs.
        return outputs * (2 * rank + 3 * scaled) // (2 * rank + scaled + outputs)

    def filter(self, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Return gradients outside of what is protected."""
        return {**gradients, **self.projected(context, gradients)}

    def confine(self, context: LearnerContext, changes: Tensors) -> Tensors:
        """Return changes outside of what is protected."""
        return self.projected(context, changes)

    def projected(self, context: LearnerContext, gradients: Mapping[str, Tensor]) -> Tensors:
        """Return what is left of those gradients, or changes, that are not free."""
        memory = context.memory
        left = {}
        for name, layer in context.layers.items():
            gradient = gradients.get(layer.weight_name)
            if gradient is None or BASIS + name not in memory:
                continue
            project, basis = self._projection(context, name)
            thin = context.step_cache.get(name) if context.step_cache is not None else None
            factors = thin.factors_of(gradient) if thin is not None else None
            if factors is None:
                left[layer.weight_name] = project(layer.matrix(gradient), basis).view_as(gradient)
            else:
                outputs, inputs = factors
                left[layer.weight_name] = outputs.T @ project(inputs, basis)
        if ROWS in memory:
            for name in _head_names(context) & gradients.keys():
                gradient = gradients[name]
                left[name] = gradient * memory[ROWS].view(-1, *[1] * (gradient.dim() - 1))
        return left

    @staticmethod
    def _projection(context: LearnerContext, name: str) -> tuple[Callable[[Tensor, Tensor], Tensor], Tensor]:
        memory = context.memory
        if OUTSIDE + name in memory:
            return project_onto, memory[OUTSIDE + name]
        return project_out, memory.get(INSIDE + name, memory[BASIS + name])


def _head_names(context: LearnerContext) -> set[str]:
    names = set()
    for layer in context.layers.values():
        if layer.is_head:
            names.add(layer.weight_name)
            if layer.module.bias is not None:
                names.add(layer.weight_name.removesuffix("weight") + "bias")
    return names
