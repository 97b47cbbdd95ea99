"""Weights that multiply few inputs, and what can be computed with those inputs instead of with the weights.

The gradient of a weight ``[out, n]`` is ``δᵀ X``, with the inputs X ``[B, n]`` of a batch and the gradients δ
``[B, out]`` of the outputs. So a projection of it is ``δᵀ (X P)``, and ``x (w P)ᵀ`` is ``(x Pᵀ) wᵀ``: if a
batch has fewer inputs than the layer has outputs, it is cheaper to transform the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_map_only


class Scaling:
    """What ``Σ_j w B_j (Q_j − I) B_jᵀ`` adds to a product with a weight w.

    Where all ``w B_j`` stay, they are computed once, and outputs are added to. Where they are learned, inputs
    are scaled before they meet the weight, ``x' = x + Σ_j (x B_j) (Q_j − I)ᵀ B_jᵀ``, and the gradient of the
    weight is of these.

    Args:
        weight: w ``[out, n]``.
        basis: ``[n, R]``, which has the columns of all B_j, each once, and perhaps others.
        places: Which of them are those of B_j, integers ``[r_j]``.
        scales: Q_j ``[r_j, r_j]``.
        through: Whether the ``w B_j`` are learned.
    """

    def __init__(
        self,
        weight: Tensor,
        basis: Tensor,
        places: Sequence[Tensor],
        scales: Sequence[Tensor],
        *,
        through: bool = False,
    ) -> None:
        self.scales, self.through = tuple(scales), through
        self.basis = basis
        self._sizes = [len(place) for place in places]
        # One B_j beside the other, [n, Σ r_j]. Most columns are in several: inputs meet them once.
        self._places = torch.cat(list(places))
        self._bases = basis.index_select(1, self._places)
        self._known = None if through else weight @ self._bases
        # Views are made here, once; those of Q_j, which changes in place, change with it.
        self._turned = [scale.detach().T for scale in scales]
        self._bases_across = self._bases.T
        self._known_across = self._bases_across if self._known is None else self._known.T

    @property
    def tensors(self) -> list[Tensor]:
        """All that the products below are of, besides inputs and gradients."""
        known = [] if self._known is None else [self._known, self._known_across]
        views = [*self._turned, self._bases_across]
        return [*self.scales, self.basis, self._places, self._bases, *known, *views]

    def along(self, inside: Tensor) -> Tensor:
        """Return ``x B_j``, one beside the other ``[B, Σ r_j]``, of products ``[B, R]`` with the basis."""
        return inside.index_select(1, self._places)

    def add_to(self, outputs: Tensor, along: Tensor) -> None:
        """Add ``Σ_j (x B_j) (Q_j − I)ᵀ (w B_j)ᵀ`` to ``x wᵀ``, given all ``x B_j``."""
        outputs.addmm_(self._less_own(along, self._turned), self._known_across)

    def scaled(self, inputs: Tensor, along: Tensor) -> Tensor:
        """Return ``x' = x + Σ_j (x B_j) (Q_j − I)ᵀ B_jᵀ`` of inputs ``[B, n]``, given all ``x B_j``."""
        return torch.addmm(inputs, self._less_own(along, self._turned), self._bases_across)

    def back(self, outer: Tensor, plain: Tensor) -> tuple[Tensor | None, Tensor]:
        """Return ``δ w``, if it was needed, and all ``δ w B_j``, one beside the other.

        Args:
            outer: The outputs' gradient δ ``[B, out]``.
            plain: w ``[out, n]``.
        """
        if self._known is not None:
            return None, outer @ self._known
        through = outer @ plain
        return through, through @ self._bases

    def add_to_inputs(self, gradient: Tensor, back: Tensor) -> None:
        """Add ``Σ_j δ w B_j (Q_j − I) B_jᵀ`` to the gradient ``δ w`` of inputs, given all ``δ w B_j``."""
        gradient.addmm_(self._less_own(back, self.scales), self._bases_across)

    def gradients(self, along: Tensor, back: Tensor) -> list[Tensor]:
        """Return the gradients ``(δ w B_j)ᵀ (x B_j)`` of the scales."""
        pairs = zip(self._parts(back), self._parts(along), strict=True)
        return [outer.T @ inputs for outer, inputs in pairs]

    def _parts(self, whole: Tensor) -> Sequence[Tensor]:
        return whole.split_with_sizes(self._sizes, 1)

    def _less_own(self, whole: Tensor, factors: Sequence[Tensor]) -> Tensor:
        pairs = zip(self._parts(whole), factors, strict=True)
        return torch.cat([torch.addmm(own, own, factor, beta=-1.0) for own, factor in pairs], dim=1)


class Factors(NamedTuple):
    """What the gradient ``δᵀ X`` of a weight is the product of.

    Attributes:
        outputs: δ ``[B, out]``, gradients of the outputs.
        inputs: X ``[B, n]``.
        inside: ``X B`` ``[B, R]`` with the basis of what is scaled, where it is at hand.
    """

    outputs: Tensor
    inputs: Tensor
    inside: Tensor | None = None


class ThinWeight(Tensor):
    """Stands in for the weight of a linear layer in training steps.

    `torch.nn.functional.linear` of few inputs goes past the effective weight; to everything else this is the
    effective weight, which is computed for it.
    """

    plain: Tensor
    """The layer's own weight w ``[out, n]``."""
    dense: Callable[[], Tensor]
    """Gives the effective weight ``[out, n]``, with a graph; the module's own is this one meanwhile."""
    most: int
    """Number of inputs B up to which the inputs are transformed and not the weight."""
    scaling: Scaling | None
    """What the effective weight has besides w."""
    _product: tuple[Tensor, int, Factors] | None

    @staticmethod
    def make(
        plain: Tensor, dense: Callable[[], Tensor], most: int, scaling: Scaling | None = None
    ) -> ThinWeight:
        """Return a weight with these attributes."""
        weight = plain.detach().as_subclass(ThinWeight)
        weight.plain, weight.dense, weight.most, weight.scaling = plain, dense, most, scaling
        weight._product = None
        return weight

    @property
    def tensors(self) -> list[Tensor]:
        """All that the products with the effective weight are of, besides inputs."""
        return [self.plain, *([] if self.scaling is None else self.scaling.tensors)]

    def remember(self, gradient: Tensor, factors: Factors) -> None:
        """Take down that w gets a gradient which is the product of these factors."""
        held = gradient.detach()  # another reference to the gradient itself would have autograd copy it
        self._product = held, held._version, factors

    def factors_of(self, gradient: Tensor) -> Factors | None:
        """Return δ ``[B, out]`` and X ``[B, n]`` if w's gradient is ``δᵀ X`` of the last call and no more.

        None if it is, or may be, anything else: the sum over several calls, or changed since, by a penalty,
        by clipping or by a correction. Certain, because the memory of ``δᵀ X`` is held here and cannot
        have become another tensor's, and every change in place counts up its version.
        """
        if self._product is None:
            return None
        held, version, factors = self._product
        if gradient.data_ptr() != held.data_ptr() or gradient._version != version:
            return None
        return factors if gradient.shape == held.shape and gradient.is_contiguous() else None

    def forget(self) -> None:
        """Let go of the last call."""
        self._product = None

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return _linear(*args, **kwargs)
        args, kwargs = tree_map_only(ThinWeight, _dense, (args, kwargs))
        return func(*args, **kwargs)


def _dense(weight: ThinWeight) -> Tensor:
    return weight.dense()


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if (
        isinstance(weight, ThinWeight)
        and not isinstance(input, ThinWeight)
        and not isinstance(bias, ThinWeight)
        and input.numel() <= weight.most * input.shape[-1]
        # Reduced precision is for products with weights, not for projections.
        and not torch.is_autocast_enabled(input.device.type)
        and not torch._C._are_functorch_transforms_active()
    ):
        scales = () if weight.scaling is None else weight.scaling.scales
        out: Tensor = _ThinLinear.apply(input, weight.plain, bias, weight, *scales)
        return out
    return F.linear(*tree_map_only(ThinWeight, _dense, (input, weight, bias)))


class _ThinLinear(torch.autograd.Function):
    """``x w̃ᵀ + b``; the gradient of w goes past the scales, as that of w alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plain: Tensor, bias: Tensor | None, weight: ThinWeight, *scales: Tensor
    ) -> Tensor:
        inputs = x.reshape(-1, x.shape[-1])
        scaling, ctx.inside = weight.scaling, None
        if scaling is not None:
            ctx.inside = inputs @ scaling.basis
            ctx.along = scaling.along(ctx.inside)
            if scaling.through:
                inputs, ctx.inside = scaling.scaled(inputs, ctx.along), None
        outputs = F.linear(inputs, plain, bias)
        if scaling is not None and not scaling.through:
            scaling.add_to(outputs, ctx.along)
        ctx.weight, ctx.shape = weight, x.shape
        ctx.save_for_backward(inputs, plain)
        return outputs.view(*x.shape[:-1], outputs.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, plain = ctx.saved_tensors
        scaling = ctx.weight.scaling
        outer = gradient.reshape(-1, gradient.shape[-1])
        for_x = for_plain = for_bias = None
        for_scales: list[Tensor] = []
        if scaling is not None:
            for_x, back = scaling.back(outer, plain)
            for_scales = scaling.gradients(ctx.along, back)
        if not ctx.needs_input_grad[0]:
            for_x = None
        else:
            for_x = outer @ plain if for_x is None else for_x
            if scaling is not None:
                scaling.add_to_inputs(for_x, back)
            for_x = for_x.view(ctx.shape)
        if ctx.needs_input_grad[1]:
            for_plain = outer.T @ inputs
            ctx.weight.remember(for_plain, Factors(outer, inputs, ctx.inside))
        if ctx.needs_input_grad[2]:
            for_bias = outer.sum(dim=0)
        return for_x, for_plain, for_bias, None, *for_scales
