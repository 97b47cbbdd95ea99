"""The layer memory of GPM, TRGP and CUBER: subspaces, scales, gradients and regimes, by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.layers import Layer
from fedkd.continual.learner import Tensors
from fedkd.continual.subspace.projection import Projection, cheaper_projection
from fedkd.storage import add_prefix, strip_prefix

BASIS = "basis/"
"""Orthonormal columns ``[n, r]`` of protected directions, by layer."""
COLUMNS = "columns/"
"""Which columns of a layer's basis are a task's: ``columns/{task}/{layer}``, int32."""
SCALE = "scale/"
"""Q ``[r, r]`` of a task for a related old one: ``scale/{task}/{layer}/{old task}``."""
GRADIENT = "gradient/"
"""Gradient ``[out, n]`` of a task at its own end: ``gradient/{task}/{layer}``."""
REGIME = "regime/"
"""Regimes of all old tasks in the last task, by layer, ``[2, task]`` uint8: at its start, and now."""
SCRATCH = "scratch/"
"""Names that are deleted at the end of a task."""
INSIDE, OUTSIDE = SCRATCH + "inside/", SCRATCH + "outside/"
"""Columns that gradients are projected with if not `BASIS`: part of it, or a complement's."""
RELATED = SCRATCH + "related/"
"""Columns of a layer's basis of any related task, ``[n, R]``."""
PLACES = SCRATCH + "places/"
"""Positions of each related task's columns among them, ``{layer}/{old task}``, int64."""
FLEXIBLE = SCRATCH + "flexible/"
"""Norm of G_j of flexible old tasks, by layer and task."""
START = SCRATCH + "start/"
"""Weights ``[out, n]`` at the start of the task, of layers that have such tasks."""


class TrustRegion(NamedTuple):
    """Subspaces of related old tasks in a layer, and a task's scales of them.

    `basis` has the columns of all B_j, each once, ``[n, R]``; `places` those of each B_j ``[r_j]``, int64;
    `scales` each Q_j ``[r_j, r_j]``.
    """

    basis: Tensor
    places: list[Tensor]
    scales: list[Tensor]

    def scaled(self, weight: Tensor, *, through: bool = False) -> Tensor:
        """Return ``w̃ = w + Σ_j w B_j (Q_j − I) B_jᵀ``, shaped like the layer's weight w.

        `through`: the gradient of w goes through Q too.
        """
        known = (weight if through else weight.detach()).reshape(len(weight), -1) @ self.basis
        shift = torch.zeros_like(known)
        # Related tasks share most of their columns: multiply by each once.
        for place, scale in zip(self.places, self.scales, strict=True):
            own = known.index_select(1, place)
            shift = shift.index_add(1, place, own @ scale - own)
        return weight + (shift @ self.basis.T).view_as(weight)


@dataclass(frozen=True)
class LayerMemory:
    """A client's memory of one layer with weight matrix w ``[out, n]``."""

    context: LearnerContext
    layer: Layer

    @property
    def protects(self) -> bool:
        """True if anything of the layer is protected."""
        return BASIS + self.layer.name in self.context.memory

    @property
    def basis(self) -> Tensor:
        """B, the orthonormal columns ``[n, r]`` of protected directions."""
        kept = self.context.memory.get(BASIS + self.layer.name)
        return self.layer.module.weight.new_zeros(self.layer.fan_in, 0) if kept is None else kept

    def append(self, directions: Tensor) -> None:
        """Add orthonormal columns ``[n, m]``, orthogonal to the basis, to it."""
        if directions.shape[1]:
            basis = self.basis
            more = directions.to(dtype=basis.dtype, device=basis.device)
            self.context.memory[BASIS + self.layer.name] = torch.cat([basis, more], dim=1)

    def hold(self, part: Tensor | None = None) -> None:
        """Project gradients out of the basis from now on, or out of some columns ``[n, m]``."""
        if not self.protects:
            return
        memory, name = self.context.memory, self.layer.name
        memory.pop(INSIDE + name, None)
        memory.pop(OUTSIDE + name, None)
        projection = cheaper_projection(self.basis if part is None else part)
        if projection.onto:
            memory[OUTSIDE + name] = projection.basis
        elif part is not None:
            memory[INSIDE + name] = projection.basis

    @property
    def projection(self) -> Projection:
        """How gradients of a protected layer are projected."""
        memory, name = self.context.memory, self.layer.name
        if OUTSIDE + name in memory:
            return Projection(memory[OUTSIDE + name], onto=True)
        return Projection(memory.get(INSIDE + name, memory[BASIS + name]), onto=False)

    def columns(self, task: int) -> Tensor | None:
        """Return a task's columns of the basis, int32 ``[r_j]``; None: it has not learned."""
        return self.context.memory.get(f"{COLUMNS}{task}/{self.layer.name}")

    def keep_columns(self, columns: Tensor) -> None:
        """Make columns of the basis those of the present task."""
        kept = columns.to(device=self.context.device, dtype=torch.int32)
        self.context.memory[f"{COLUMNS}{self.context.task}/{self.layer.name}"] = kept

    @property
    def learned(self) -> list[int]:
        """The old tasks that have learned and so have a subspace."""
        return [old for old in range(self.context.task) if self.columns(old) is not None]

    def basis_of(self, task: int) -> Tensor:
        """Return B_j ``[n, r_j]`` of a task that has learned."""
        return self.basis.index_select(1, self._columns(task))

    def places(self, olds: Sequence[int]) -> list[Tensor]:
        """Return each old task's columns of the basis, int64 ``[r_j]``."""
        return [self._columns(old).long() for old in olds]

    def related(self, task: int) -> list[int]:
        """Return the old tasks that a task is related to."""
        return [old for old in range(task) if self._scale_name(task, old) in self.context.memory]

    def relate_to(self, olds: Sequence[int]) -> None:
        """Relate the present task to old ones, with scales that start at the identity."""
        memory, name = self.context.memory, self.layer.name
        basis, places = self._together(olds)
        memory[RELATED + name] = basis
        for old, place in zip(olds, places, strict=True):
            memory[f"{PLACES}{name}/{old}"] = place
            identity = torch.eye(len(place), dtype=basis.dtype, device=basis.device)
            memory[self._scale_name(self.context.task, old)] = identity

    def trust_region(self, task: int) -> TrustRegion | None:
        """Return a task's scaled subspaces; None without related tasks."""
        related, memory, name = self.related(task), self.context.memory, self.layer.name
        if not related:
            return None
        scales = [memory[self._scale_name(task, old)] for old in related]
        if task == self.context.task and RELATED + name in memory:
            places = [memory[f"{PLACES}{name}/{old}"] for old in related]
            return TrustRegion(memory[RELATED + name], places, scales)
        return TrustRegion(*self._together(related), scales)

    def _columns(self, task: int) -> Tensor:
        return self.context.memory[f"{COLUMNS}{task}/{self.layer.name}"]

    def _scale_name(self, task: int, old: int) -> str:
        return f"{SCALE}{task}/{self.layer.name}/{old}"

    def _together(self, olds: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Return the joint columns of some tasks, and each task's positions in them."""
        columns = [self._columns(old) for old in olds]
        union = torch.cat(columns).unique()
        places = [torch.searchsorted(union, own) for own in columns]
        return self.basis.index_select(1, union), places

    def keep_gradient(self, gradient: Tensor) -> None:
        """Store the present task's gradient ``[out, n]`` at its end."""
        self.context.memory[f"{GRADIENT}{self.context.task}/{self.layer.name}"] = gradient

    def keeps_gradient(self, task: int) -> bool:
        """Return whether there is a gradient of an old task."""
        return f"{GRADIENT}{task}/{self.layer.name}" in self.context.memory

    def gradient(self, task: int) -> Tensor:
        """Return G_j ``[out, n]`` of an old task."""
        return self.context.memory[f"{GRADIENT}{task}/{self.layer.name}"]

    def gradient_length(self, task: int) -> Tensor:
        """Return ``‖G_j‖``, a scalar."""
        kept = self.context.memory.get(f"{FLEXIBLE}{self.layer.name}/{task}")
        return self.gradient(task).norm() if kept is None else kept

    @property
    def regimes(self) -> Tensor:
        """Regimes of all old tasks, ``[2, task]`` uint8: at the task's start, and now."""
        return self.context.memory[REGIME + self.layer.name]

    def begin_regimes(self, regime: int) -> None:
        """Put all old tasks in one regime."""
        regimes = torch.full((2, self.context.task), regime, dtype=torch.uint8, device=self.context.device)
        self.context.memory[REGIME + self.layer.name] = regimes

    @property
    def start(self) -> Tensor:
        """Weights ``[out, n]`` at the start of the task, of a layer that has flexible tasks."""
        return self.context.memory[START + self.layer.name]

    @property
    def flexible(self) -> list[int]:
        """The flexible old tasks: the weight may change in their subspaces."""
        memory, name = self.context.memory, self.layer.name
        if START + name not in memory:
            return []
        return [old for old in range(self.context.task) if f"{FLEXIBLE}{name}/{old}" in memory]

    def loosen(self, old: int) -> None:
        """Let the weight change in an old task's subspace, from its value at the task's start."""
        memory, name = self.context.memory, self.layer.name
        memory[f"{FLEXIBLE}{name}/{old}"] = self.gradient_length(old)
        memory[START + name] = self.layer.matrix(self.layer.module.weight).detach().clone()

    def fasten(self, old: int) -> None:
        """Undo `loosen`."""
        del self.context.memory[f"{FLEXIBLE}{self.layer.name}/{old}"]

    def free_columns(self) -> Tensor:
        """Return 1 for basis columns of flexible tasks only, else 0, ``[r]``."""
        free = torch.ones(self.basis.shape[1], dtype=self.basis.dtype, device=self.basis.device)
        for old in self.learned:
            if old not in self.flexible:
                free[self._columns(old).long()] = 0.0
        return free

    def hold_all_but_flexible(self) -> None:
        """Project gradients out of the subspaces of all inflexible tasks."""
        self.hold(self.basis[:, self.free_columns() == 0].contiguous() if self.flexible else None)


def layer_memories(context: LearnerContext) -> list[LayerMemory]:
    """Return the memories of all layers, in the network's order."""
    return [LayerMemory(context, layer) for layer in context.layers.values()]


def scales_of(context: LearnerContext, task: int) -> Tensors:
    """Return the matrices Q of a task in all layers, by their names in memory."""
    own = f"{SCALE}{task}/"
    return add_prefix(own, strip_prefix(own, context.memory))


def forget_scratch(context: LearnerContext) -> None:
    """Delete the tensors that last one task."""
    for name in add_prefix(SCRATCH, strip_prefix(SCRATCH, context.memory)):
        del context.memory[name]
