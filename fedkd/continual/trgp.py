"""TRGP: reuse what related old tasks have learned by scaling weights within their subspaces."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.gpm import GPM, SCRATCH
from fedkd.continual.layers import Layer
from fedkd.continual.learner import Tensors
from fedkd.continual.subspace import (
    draw,
    energies_along,
    mean_gradients,
    number_needed,
    relatedness,
    residual_directions,
)
from fedkd.continual.thin import Scaling, ThinWeight
from fedkd.hyperparameters import STRICT

COLUMNS = "columns/"
"""Which columns of a layer's basis are a task's: ``columns/{task}/{layer}``, int32."""
SCALE = "scale/"
"""Q ``[r, r]`` of a task for a related old one: ``scale/{task}/{layer}/{old task}``."""
RELATED = SCRATCH + "related/"
"""Those columns of a layer's basis that any related task of the present one has, ``[n, r]``."""
PLACES = SCRATCH + "places/"
"""Where among them each related task's own are, ``{layer}/{old task}``, int64."""


@dataclass(frozen=True, config=STRICT)
class TRGP(GPM):
    """GPM that scales old knowledge where a new task's gradient points to it ("trust region").

    With G the mean gradient of a layer at the start of a task, an old task j is related if
    ``‖G B_j B_jᵀ‖ > ε1 ‖G‖``; the two largest count. For each of them a matrix Q_j is learned, from the
    identity, and the task sees ::

        w̃ = w + Σ_j [w B_j Q_j B_jᵀ − w B_j B_jᵀ]

    while w changes outside the union of all bases alone, so that ``w B_j`` stays. The basis of a task is
    chosen among the union's columns o, by their energies ``oᵀ R Rᵀ o``, and the new directions, by their
    squared singular values: the largest together until their share of ``‖R‖²`` is ε. New directions join the
    union, all of them. So a task's basis is a list of the union's columns, and costs no more than that.

    The gradient of w goes past Q: what it would add lies within B_j, and would be projected out. Q is trained
    by the same optimiser as w; its weight decay draws Q to 0, not to the identity.
    """

    name: ClassVar[str] = "trgp"
    paper: ClassVar[str] = (
        "Lin, Yang, Fan & Zhang, TRGP: Trust Region Gradient Projection for Continual Learning, ICLR 2022"
    )

    relatedness: Annotated[float, Field(ge=0)] = 0.5
    """ε1: share of the new gradient's norm within an old task's subspace from which on that task is related;
    0.2 for permuted MNIST, 0.5 elsewhere. Lower reuses more, at a matrix Q for every pair; from 1 on nothing
    is related, as in GPM."""
    related_tasks: Annotated[int, Field(ge=1)] = 2
    """The most old tasks that a layer may be related to. Each costs two products with a thin matrix a step;
    the paper takes 2."""

    # The course of a task -----------------------------------------------------------------------------

    def begin_task(self, context: LearnerContext) -> None:
        """Find the related tasks of every layer."""
        super().begin_task(context)
        if self.protects(context):
            layers = self.layers(context)
            x, labels = draw(context, "gradient", self.samples)
            for name, gradient in mean_gradients(context, layers, x, labels, dict).items():
                self.relate(context, layers[name], gradient)

    def relate(self, context: LearnerContext, layer: Layer, gradient: Tensor) -> list[int]:
        """Return the tasks that the present one is related to in a layer, and begin to scale them.

        Args:
            context: Its memory gets the matrices Q.
            layer: The layer.
            gradient: G ``[out, n]``.
        """
        shares = {
            old: relatedness(gradient, self.basis_of(context, layer, old))
            for old in range(context.task)
            if f"{COLUMNS}{old}/{layer.name}" in context.memory
        }
        enough = [old for old, share in shares.items() if share > self.relatedness]
        related = sorted(enough, key=lambda old: -shares[old])[: self.related_tasks]
        if related:
            within, places = self._within(context, layer, related)
            context.memory[RELATED + layer.name] = within
            for old, place in zip(related, places, strict=True):
                context.memory[f"{PLACES}{layer.name}/{old}"] = place
                identity = torch.eye(len(place), dtype=within.dtype, device=within.device)
                context.memory[f"{SCALE}{context.task}/{layer.name}/{old}"] = identity
        return related

    def basis_of(self, context: LearnerContext, layer: Layer, task: int) -> Tensor:
        """Return B_j ``[n, r]`` of a layer and a task that has been learned."""
        return self.basis(context, layer).index_select(1, context.memory[f"{COLUMNS}{task}/{layer.name}"])

    def _within(
        self, context: LearnerContext, layer: Layer, olds: Sequence[int]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the columns of the basis that any of some tasks has, and where each task's are in them."""
        columns = [context.memory[f"{COLUMNS}{old}/{layer.name}"] for old in olds]
        union = torch.cat(columns).unique()
        places = [torch.searchsorted(union, own) for own in columns]
        return self.basis(context, layer).index_select(1, union), places

    def trainable(self, context: LearnerContext) -> Tensors:
        """Return what GPM trains, and the matrices Q of the present task."""
        return {**super().trainable(context), **self._scales(context)}

    def _scales(self, context: LearnerContext) -> Tensors:
        own = f"{SCALE}{context.task}/"
        return {name: values for name, values in context.memory.items() if name.startswith(own)}

    def end_task(self, context: LearnerContext) -> None:
        """Choose the task's basis and keep its matrices Q; unless nothing was trained."""
        super().end_task(context)
        for name, scale in self._scales(context).items():
            scale.requires_grad_(False)
            if not context.phase:
                del context.memory[name]

    def extend(self, context: LearnerContext, layer: Layer, inputs: Tensor, share: float) -> None:
        """Choose the task's basis among old and new directions of a layer (see `GPM.extend`)."""
        basis = self.basis(context, layer).double().cpu()
        directions, new = residual_directions(inputs, basis)
        energies = torch.cat([energies_along(inputs, basis), new])
        order = energies.argsort(descending=True, stable=True)
        count = number_needed(energies[order], share * float(inputs.square().sum()))
        chosen = order[:count].sort().values
        # New directions are sorted by energy, so that those chosen are the first ones.
        fresh = int((chosen >= basis.shape[1]).sum())
        self.append(context, layer, directions[:, :fresh])
        context.memory[f"{COLUMNS}{context.task}/{layer.name}"] = chosen.to(
            device=context.device, dtype=torch.int32
        )

    def report(self, context: LearnerContext) -> dict[str, float]:
        """Return what GPM tells, the rank of the task's own basis, and how many tasks it is related to."""
        figures = super().report(context)
        for name in self.layers(context):
            columns = context.memory.get(f"{COLUMNS}{context.task}/{name}")
            if columns is not None:
                figures[f"task_rank/{name}"] = float(len(columns))
            scales = [f"{SCALE}{context.task}/{name}/{old}" in context.memory for old in range(context.task)]
            figures[f"related/{name}"] = float(sum(scales))
        return figures

    # A step -------------------------------------------------------------------------------------------

    def effective(self, context: LearnerContext, task: int) -> Tensors:
        """Return ``w̃`` of the layers in which a task is related to others."""
        thin = super().effective(context, task)
        return {**self.scaled(context, task, besides=thin), **thin}

    def scaled(
        self, context: LearnerContext, task: int, through: Collection[str] = (), besides: Collection[str] = ()
    ) -> Tensors:
        """Return ``w̃`` by the names of the weights.

        Args:
            context: Its memory has the matrices Q.
            task: Any.
            through: Names of layers in which the gradient of w goes through Q too.
            besides: Names of weights that are not asked for.
        """
        return {
            layer.weight_name: self._scaled_weight(
                context, task, layer, layer.module.weight, through=name in through
            )
            for name, layer in context.layers.items()
            if layer.weight_name not in besides and self._related(context, task, name)
        }

    def _scaled_weight(
        self, context: LearnerContext, task: int, layer: Layer, weight: Tensor, *, through: bool
    ) -> Tensor:
        basis, places, scales = self._scales_of(context, task, layer)
        # Related tasks share most of their columns: multiply by each once.
        known = layer.matrix(weight if through else weight.detach()) @ basis
        shift = torch.zeros_like(known)
        for place, scale in zip(places, scales, strict=True):
            own = known.index_select(1, place)
            shift = shift.index_add(1, place, own @ scale - own)
        return weight + (shift @ basis.T).view_as(weight)

    def _related(self, context: LearnerContext, task: int, name: str) -> list[int]:
        prefix = f"{SCALE}{task}/{name}/"
        return [old for old in range(task) if f"{prefix}{old}" in context.memory]

    def _scales_of(
        self, context: LearnerContext, task: int, layer: Layer
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the columns ``[n, R]`` of related tasks, where each one's are among them, and their Q."""
        related = self._related(context, task, layer.name)
        scales = [context.memory[f"{SCALE}{task}/{layer.name}/{old}"] for old in related]
        if RELATED + layer.name in context.memory and task == context.task:
            basis = context.memory[RELATED + layer.name]
            return basis, [context.memory[f"{PLACES}{layer.name}/{old}"] for old in related], scales
        return *self._within(context, layer, related), scales

    def thin(self, context: LearnerContext, layer: Layer) -> ThinWeight | None:
        """Return what scales inputs instead of the weight, for steps that leave ``w B_j`` as it is."""
        if not self._related(context, context.task, layer.name):
            return super().thin(context, layer)
        weight = layer.module.weight
        basis, places, scales = self._scales_of(context, context.task, layer)
        most = self.most_inputs(context, layer, scaled=basis.shape[1])
        if context.batch_size > most:
            return None
        return ThinWeight.make(
            weight,
            lambda: self._scaled_weight(context, context.task, layer, weight, through=False),
            most,
            Scaling(weight.detach(), basis, places, scales),
        )
