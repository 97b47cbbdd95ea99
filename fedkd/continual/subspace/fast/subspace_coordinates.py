"""Subspace coordinates: steps of a weight within its scaled subspaces.

With B ``[n, r]`` the orthonormal columns of a layer's protected directions, plain gradient steps change
``w B`` ``[out, r]`` by products of few inputs: ``∇ B = δᵀ (X' B)``. So within the span of B the weight keeps
its values of the epoch's start. Its coordinates K = ``w B`` are stored beside it:
``x wᵀ = (x − x B Bᵀ) wᵀ + (x B) Kᵀ``. Products of the whole weight with B and Bᵀ are computed once an epoch.
In float64, weights agree with the plain code within 1e-10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.continual.subspace.fast.factored_gradient import Factors, Saved, Scaling
from fedkd.continual.subspace.layer_memory import LayerMemory, TrustRegion
from fedkd.training import kernel_decorator


class GradientParts(NamedTuple):
    """A gradient G: outside, ``G − G B Bᵀ`` ``[out, n]``, plus inside, ``G B`` ``[out, r]``, times Bᵀ."""

    outside: Tensor
    inside: Tensor


class SubspaceCoordinates(Scaling):
    """Scales of a layer whose weight moves in subspaces of flexible tasks (regime R3 of CUBER).

    Within the basis the weight w keeps its values of the epoch's start (see `pending`). On a CPU alone.
    `strength` is λ and `correlation` ε2 of CUBER; `rate` is a scalar.
    """

    def __init__(
        self, memory: LayerMemory, region: TrustRegion, *, rate: Tensor, strength: float, correlation: float
    ) -> None:
        flexible, across = memory.flexible, memory.basis.T.contiguous()
        basis = across.T  # both ways from one place in memory: a step's products with it wait for memory
        weight = memory.layer.matrix(memory.layer.module.weight).detach()
        self._across = across
        self._known = weight @ basis
        places = memory.places(memory.related(memory.context.task))
        super().__init__(weight, basis, places, region.scales)
        self._coordinates = self._known.clone()
        self._coordinates_across = self._coordinates.T
        self._centre = self._known - (weight - memory.start) @ basis
        shares = torch.zeros(len(flexible), basis.shape[1], dtype=torch.bool)
        for share, place in zip(shares, memory.places(flexible), strict=True):
            share[place] = True
        groups, self._members = grouped(shares)
        self._groups = groups.to(weight.dtype)
        self._pace = rate * memory.free_columns()
        self._reach = rate * strength
        stored = torch.stack([memory.gradient(old) for old in flexible])
        self._stored = stored.flatten(1)
        self._stored_inside = (stored @ basis).flatten(1)
        self._compares, self._nothing = correlation != 0.0, torch.zeros_like(rate)
        self._least = correlation * torch.stack([memory.gradient_length(old) for old in flexible])

    def _prepare(self, weight: Tensor) -> None:
        pass  # nothing is added to outputs, or to the gradients of inputs, for one B_j after the other

    @property
    def tensors(self) -> list[Tensor]:
        products = [self._across, self._known, self._coordinates, self._coordinates_across]
        held = [self._centre, self._pace, self._groups, self._members, self._reach]
        agreed = [self._stored, self._stored_inside, self._least, self._nothing]
        return [*self.scales, self.basis, self._places, *self._scales_across, *products, *held, *agreed]

    def outputs(self, inputs: Tensor, plain: Tensor, bias: Tensor | None) -> tuple[Tensor, Saved]:
        """Return ``x w̃ᵀ + b`` of inputs ``[B, n]``, the pending change included."""
        saved = self._save(inputs)
        scaled = saved.inside.index_add(1, self._places, self._less_own(saved.along, self._scales_across))
        outside = torch.addmm(inputs, saved.inside, self._across, alpha=-1.0)
        outputs = F.linear(outside, plain, bias).addmm_(scaled, self._coordinates_across)
        return outputs, saved._replace(inputs=outside, inside=scaled)

    def back(
        self, outer: Tensor, plain: Tensor, saved: Saved, *, for_inputs: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradients of the inputs and of the scales (see `Scaling.back`)."""
        inside = outer @ self._coordinates
        back = self._parts(inside.index_select(1, self._places))
        gradients = self._gradients(saved.along, back)
        if not for_inputs:
            return None, gradients
        inside = inside.index_add(1, self._places, self._less_own(back, self.scales))
        inside = torch.addmm(inside, outer, self._known, alpha=-1.0)  # in the place of what w has there
        return (outer @ plain).addmm_(inside, self._across), gradients

    def factors(self, outer: Tensor, saved: Saved) -> Factors:
        """Return the factors of w's gradient, which goes through the scales."""
        inputs = torch.addmm(saved.inputs, saved.inside, self._across)
        return Factors(outer, inputs, saved.inside, saved.inputs)

    def parts(self, factors: Factors) -> GradientParts:
        """Return the gradient, in parts, from factors that this object made."""
        assert factors.inside is not None and factors.outside is not None
        across = factors.outputs.T
        return GradientParts(across @ factors.outside, across @ factors.inside)

    def agreement(self, parts: GradientParts) -> Agreement:
        """Return the terms that decide the agreement of flexible tasks with a gradient."""
        outside, inside = parts.outside.view(-1), parts.inside.view(-1)
        products = torch.addmv(torch.mv(self._stored, outside), self._stored_inside, inside)
        if not self._compares:
            return Agreement(products, self._nothing, self._nothing, self._least)
        return Agreement(products, torch.dot(outside, outside), torch.dot(inside, inside), self._least)

    def advance(self, inside: Tensor) -> None:
        """Take the part ``G B`` ``[out, r]`` of a step, held back: ``d_j ← max(0, 1 − lr λ / ‖d_j‖) d_j``.

        d_j is the distance from the task's start in the subspace of the flexible task j, one task after
        another. Columns that other tasks protect stay.
        """
        columns = self._groups, self._members
        hold_back(self._coordinates, self._centre, inside, self._pace, *columns, self._reach)

    def pending(self) -> Tensor:
        """Return the pending change ``[out, n]`` of the weight."""
        return (self._coordinates - self._known) @ self._across


class Agreement(NamedTuple):
    """Terms of ``⟨G_j, G⟩ ≥ ε2 ‖G_j‖ ‖G‖`` for the k flexible tasks j of a layer.

    They are ``⟨G_j, G⟩`` ``[k]``, ``‖G − G B Bᵀ‖²``, ``‖G B‖²``, scalars, and ``ε2 ‖G_j‖`` ``[k]``.
    """

    products: Tensor
    outside: Tensor
    inside: Tensor
    least: Tensor

    def holds(self) -> list[bool]:
        """Return whether each task agrees."""
        length = math.sqrt(self.outside.item() + self.inside.item())
        pairs = zip(self.products.tolist(), self.least.tolist(), strict=True)
        return [product >= least * length for product, least in pairs]


@kernel_decorator("agree(Tensor[] products, Tensor[] outside, Tensor[] inside, Tensor[] least) -> Tensor")
def agree(
    products: Sequence[Tensor], outside: Sequence[Tensor], inside: Sequence[Tensor], least: Sequence[Tensor]
) -> Tensor:
    """Return whether all tasks of all layers agree, a bool scalar (see `Agreement.holds`)."""
    for found, square, other, bounds in zip(products, outside, inside, least, strict=True):
        length = math.sqrt(square.item() + other.item())
        for product, bound in zip(found.tolist(), bounds.tolist(), strict=True):
            if not product >= bound * length:
                return torch.from_numpy(np.array(False))
    return torch.from_numpy(np.array(True))


@kernel_decorator(
    "hold_back(Tensor(a!) coordinates, Tensor centre, Tensor(b!) inside, Tensor pace,"
    " Tensor groups, Tensor members, Tensor reach) -> ()"
)
def hold_back(
    coordinates: Tensor,
    centre: Tensor,
    inside: Tensor,
    pace: Tensor,
    groups: Tensor,
    members: Tensor,
    reach: Tensor,
) -> None:
    """Take a step of coordinates ``[out, r]`` (see `SubspaceCoordinates.advance`).

    Args:
        coordinates: K, changed in place.
        inside: Gradient; its memory is used up.
        pace: Learning rate of every column ``[r]``.
        groups: 1 for columns of the same flexible tasks, else 0 ``[g, r]``.
        members: True if a task has a group's columns, bool ``[k, g]``.
        reach: ``lr λ``, the distance that a step is held back.
    """
    # As few passes over tensors as possible: they wait for memory.
    torch.addcmul(coordinates, inside, pace, value=-1.0, out=inside)
    most = reach.item()
    if most <= 0.0:
        coordinates.copy_(inside)
        return
    arrival, columns = inside.sub_(centre).numpy(), groups.numpy()
    energies = np.dot(columns, np.einsum("ij,ij->j", arrival, arrival)).tolist()
    left = [1.0] * len(energies)
    for task in members.tolist():
        square = 0.0
        for group, own in enumerate(task):
            square += energies[group] * left[group] * left[group] if own else 0.0
        kept = 1.0 - most / max(math.sqrt(square), most)
        for group, own in enumerate(task):
            left[group] *= kept if own else 1.0
    share = torch.from_numpy(np.dot(np.array(left, dtype=columns.dtype), columns))
    torch.addcmul(centre, inside, share, out=coordinates)


def grouped(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Group columns by flexible tasks, ``[k, r]``: columns ``[g, r]`` and members ``[k, g]``, all bool."""
    members, group = shares.unique(dim=1, return_inverse=True)
    return torch.arange(members.shape[1])[:, None] == group, members
