"""Steps in which a weight moves within subspaces that it is scaled in: what moves there are coordinates.

With B ``[n, r]`` the orthonormal columns of all that is protected in a layer, the part of a weight within
their span is ``w B Bᵀ``, and plain gradient steps change ``w B`` ``[out, r]`` by products of few inputs that
a step has anyway: ``∇ B = δᵀ (X' B)``. So the weight itself keeps, within the span, what it has where an
epoch begins, and beside it goes ``A = (w − w_epoch) B``. Outputs get what is missing, ``x B`` being at hand;
products of the whole weight with B and Bᵀ are taken once an epoch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedkd.continual.layer_memory import LayerMemory, TrustRegion
from fedkd.continual.thin import Factors, Scaling, Seen


class Move(NamedTuple):
    """A gradient G ``[out, n]`` in two parts, ``G = outside + inside Bᵀ``.

    Attributes:
        outside: ``G − G B Bᵀ`` ``[out, n]``.
        inside: ``G B`` ``[out, r]``.
    """

    outside: Tensor
    inside: Tensor


class MovingScaling(Scaling):
    """Scales of a layer with flexible tasks, in whose subspaces its weight moves (regime R3 of CUBER).

    The weight w of which products are asked for is that of where the epoch began, but for what it has outside
    of the basis: see `owed`.

    Args:
        memory: The layer's.
        region: What the present task scales.
        rate: Learning rate, a scalar.
        strength: λ: how hard the weight is held back.
        correlation: ε2: the least cosine between a flexible task's gradient and a step's.
    """

    def __init__(
        self, memory: LayerMemory, region: TrustRegion, *, rate: Tensor, strength: float, correlation: float
    ) -> None:
        flexible, across = memory.flexible, memory.basis.T.contiguous()
        basis = across.T  # both ways from one place in memory: a step's products with it wait for memory
        weight = memory.layer.matrix(memory.layer.module.weight).detach()
        places = memory.places(memory.related(memory.context.task))
        super().__init__(weight, basis, places, region.scales)
        self._across = across
        self._begin = (weight - memory.start) @ basis  # from where the task began, in coordinates
        self._way = self._begin.clone()
        self._drift = torch.zeros_like(self._begin)
        self._drift_across = self._drift.T
        shares = [torch.zeros_like(basis[0]).index_fill(0, place, 1.0) for place in memory.places(flexible)]
        self._shares = shares if strength > 0.0 else []
        self._pace = rate * memory.free_columns()
        self._reach = rate * strength
        self._whole = torch.ones_like(rate)
        stored = torch.stack([memory.gradient(old) for old in flexible])
        self._stored = stored.flatten(1)
        self._stored_inside = (stored @ basis).flatten(1)
        self._compares = correlation != 0.0
        lengths = torch.stack([memory.gradient_length(old) for old in flexible])
        self._least = correlation * lengths

    def _prepare(self, weight: Tensor) -> None:
        self._known_across = (weight @ self.basis.index_select(1, self._places)).T.contiguous()
        self._known = self._known_across.T

    @property
    def tensors(self) -> list[Tensor]:
        """All that the products below are of, besides inputs and gradients."""
        products = [self._known, self._known_across, self._across]
        moving = [self._begin, self._way, self._drift, self._drift_across, *self._shares]
        fixed = [self._pace, self._reach, self._whole, self._stored, self._stored_inside, self._least]
        return [*self.scales, self.basis, self._places, *self._turned, *products, *moving, *fixed]

    # Products -----------------------------------------------------------------------------------------

    def outputs(self, inputs: Tensor, plain: Tensor, bias: Tensor | None) -> tuple[Tensor, Seen]:
        """Return ``x w̃ᵀ + b`` of inputs ``[B, n]``, with what the weight is owed."""
        seen = self._seen(inputs)
        added = self._less_own(seen.along, self._turned)
        scaled = seen.inside.index_add(1, self._places, added)
        outputs = F.linear(inputs, plain, bias)
        outputs.addmm_(added, self._known_across).addmm_(scaled, self._drift_across)
        return outputs, seen._replace(scaled=scaled)

    def back(
        self, outer: Tensor, plain: Tensor, seen: Seen, *, for_inputs: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradients of the inputs and of the scales (see `Scaling.back`)."""
        drifted = outer @ self._drift
        back = torch.addmm(drifted.index_select(1, self._places), outer, self._known)
        gradients = self._gradients(seen.along, back)
        if not for_inputs:
            return None, gradients
        added = drifted.index_add(1, self._places, self._less_own(back, self.scales))
        return (outer @ plain).addmm_(added, self._across), gradients

    def factors(self, outer: Tensor, seen: Seen) -> Factors:
        """Return what the gradient of w is a product of, through the scales."""
        assert seen.scaled is not None
        outside = torch.addmm(seen.inputs, seen.inside, self._across, alpha=-1.0)
        inputs = torch.addmm(outside, seen.scaled, self._across)
        return Factors(outer, inputs, seen.scaled, outside)

    # Steps --------------------------------------------------------------------------------------------

    def move(self, factors: Factors) -> Move:
        """Return the gradient that is the product of these factors, which have to come from here."""
        assert factors.inside is not None and factors.outside is not None
        across = factors.outputs.T
        return Move(across @ factors.outside, across @ factors.inside)

    def agrees(self, move: Move) -> Tensor:
        """Return whether ``⟨G_j, G⟩ ≥ ε2 ‖G_j‖ ‖G‖`` of every flexible task j, bool ``[k]``."""
        outside, inside = move.outside.view(-1), move.inside.view(-1)
        products = torch.addmv(torch.mv(self._stored, outside), self._stored_inside, inside)
        if not self._compares:
            return products >= 0.0
        length = (torch.dot(outside, outside) + torch.dot(inside, inside)).sqrt()
        return products >= self._least * length

    def advance(self, inside: Tensor) -> None:
        """Take the part ``G B`` ``[out, r]`` of a step, held back: ``d_j ← max(0, 1 − lr λ / ‖d_j‖) d_j``.

        With d_j how far the step arrives from where the task began, in the subspace of the flexible task j,
        one task after another. Columns that other tasks protect get nothing of the gradient.
        """
        arrival = torch.addcmul(self._way, inside, self._pace, value=-1.0)
        left = self._left(arrival.square().sum(dim=0))
        if left is None:
            self._way.copy_(arrival)
        else:
            torch.mul(arrival, left, out=self._way)
        torch.sub(self._way, self._begin, out=self._drift)

    def _left(self, energies: Tensor) -> Tensor | None:
        """Return the shares ``[r]`` of columns with these energies that are left of a step; None: all."""
        left: Tensor | None = None
        for number, share in enumerate(self._shares, start=1):
            cut = torch.minimum(torch.dot(share, energies).rsqrt() * self._reach, self._whole)
            kept = 1.0 - share * cut
            left = kept if left is None else left * kept
            if number < len(self._shares):
                energies = energies * kept * kept
        return left

    def owed(self) -> Tensor:
        """Return what the weight has to be given to be what it is, ``[out, n]``."""
        return self._drift @ self._across
