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


class Factors(NamedTuple):
    """What the gradient ``δᵀ X`` of a weight is the product of.

    Attributes:
        outputs: δ ``[B, out]``, gradients of the outputs.
        inputs: X ``[B, n]``.
        inside: ``X B`` ``[B, R]`` with the basis of what is scaled, where it is at hand.
        outside: ``X − X B Bᵀ`` ``[B, n]``, where it is at hand.
    """

    outputs: Tensor
    inputs: Tensor
    inside: Tensor | None = None
    outside: Tensor | None = None


class Seen(NamedTuple):
    """What a forward pass keeps for its way back.

    Attributes:
        inputs: What the weight was multiplied by ``[B, n]``.
        inside: Inputs times the basis, ``[B, R]``.
        along: Inputs times all B_j ``[B, r_j]``.
    """

    inputs: Tensor
    inside: Tensor
    along: Sequence[Tensor]


class Scaling:
    """What ``Σ_j w B_j (Q_j − I) B_jᵀ`` adds to a product with a weight w whose ``w B_j`` all stay.

    They are computed once, and outputs are added to.

    Args:
        weight: w ``[out, n]``.
        basis: ``[n, R]``, which has the columns of all B_j, each once, and perhaps others.
        places: Which of them are those of B_j, integers ``[r_j]``.
        scales: Q_j ``[r_j, r_j]``.
    """

    def __init__(
        self, weight: Tensor, basis: Tensor, places: Sequence[Tensor], scales: Sequence[Tensor]
    ) -> None:
        self.scales = tuple(scales)
        self.basis = basis
        self._sizes = [len(place) for place in places]
        # One B_j beside the other, [n, Σ r_j]. Most columns are in several: inputs meet them once.
        self._places = torch.cat(list(places))
        # Views are made here, once; those of Q_j, which changes in place, change with it.
        self._turned = [scale.detach().T for scale in scales]
        self._prepare(weight)

    def _prepare(self, weight: Tensor) -> None:
        self._bases = self.basis.index_select(1, self._places)
        self._bases_across = self._bases.T
        self._known = weight @ self._bases
        self._known_across = self._known.T

    @property
    def tensors(self) -> list[Tensor]:
        """All that the products below are of, besides inputs and gradients."""
        known = [self._known, self._known_across, self._bases, self._bases_across]
        return [*self.scales, self.basis, self._places, *self._turned, *known]

    def outputs(self, inputs: Tensor, plain: Tensor, bias: Tensor | None) -> tuple[Tensor, Seen]:
        """Return ``x w̃ᵀ + b`` of inputs ``[B, n]``: ``x wᵀ + b + Σ_j (x B_j) (Q_j − I)ᵀ (w B_j)ᵀ``."""
        seen = self._seen(inputs)
        outputs = F.linear(inputs, plain, bias)
        outputs.addmm_(self._less_own(seen.along, self._turned), self._known_across)
        return outputs, seen

    def back(
        self, outer: Tensor, plain: Tensor, seen: Seen, *, for_inputs: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradients of the inputs, ``δ w̃``, and of the scales, ``(δ w B_j)ᵀ (x B_j)``.

        Args:
            outer: The outputs' gradient δ ``[B, out]``.
            plain: w ``[out, n]``.
            seen: What `outputs` has.
            for_inputs: Whether the inputs' is asked for; else it is None.
        """
        back = self._parts(outer @ self._known)
        gradients = self._gradients(seen.along, back)
        return (self._with_scales(outer @ plain, back) if for_inputs else None), gradients

    def factors(self, outer: Tensor, seen: Seen) -> Factors:
        """Return what the gradient of w is a product of, past the scales."""
        return Factors(outer, seen.inputs, seen.inside)

    def _seen(self, inputs: Tensor) -> Seen:
        inside = inputs @ self.basis
        return Seen(inputs, inside, self._parts(inside.index_select(1, self._places)))

    def _with_scales(self, gradient: Tensor, back: Sequence[Tensor]) -> Tensor:
        """Add ``Σ_j δ w B_j (Q_j − I) B_jᵀ`` to the gradient ``δ w`` of inputs, given all ``δ w B_j``."""
        return gradient.addmm_(self._less_own(back, self.scales), self._bases_across)

    def _gradients(self, along: Sequence[Tensor], back: Sequence[Tensor]) -> list[Tensor]:
        return [outer.T @ inputs for outer, inputs in zip(back, along, strict=True)]

    def _parts(self, whole: Tensor) -> Sequence[Tensor]:
        return whole.split_with_sizes(self._sizes, 1)

    def _less_own(self, parts: Sequence[Tensor], factors: Sequence[Tensor]) -> Tensor:
        pairs = zip(parts, factors, strict=True)
        return torch.cat([torch.addmm(own, own, factor, beta=-1.0) for own, factor in pairs], dim=1)


class LearnedScaling(Scaling):
    """The same where the ``w B_j`` are learned too, and change from step to step.

    Inputs are scaled before they meet the weight, ``x' = x + Σ_j (x B_j) (Q_j − I)ᵀ B_jᵀ``, and the gradient
    of the weight is of these.
    """

    def _prepare(self, weight: Tensor) -> None:
        self._bases = self.basis.index_select(1, self._places)
        self._bases_across = self._bases.T

    @property
    def tensors(self) -> list[Tensor]:
        known = [self._bases, self._bases_across]
        return [*self.scales, self.basis, self._places, *self._turned, *known]

    def outputs(self, inputs: Tensor, plain: Tensor, bias: Tensor | None) -> tuple[Tensor, Seen]:
        seen = self._seen(inputs)
        scaled = torch.addmm(inputs, self._less_own(seen.along, self._turned), self._bases_across)
        return F.linear(scaled, plain, bias), seen._replace(inputs=scaled)

    def back(
        self, outer: Tensor, plain: Tensor, seen: Seen, *, for_inputs: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        through = outer @ plain
        back = self._parts(through @ self._bases)
        gradients = self._gradients(seen.along, back)
        return (self._with_scales(through, back) if for_inputs else None), gradients

    def factors(self, outer: Tensor, seen: Seen) -> Factors:
        return Factors(outer, seen.inputs)


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
        ctx.weight, ctx.shape, ctx.seen = weight, x.shape, None
        if weight.scaling is None:
            outputs = F.linear(inputs, plain, bias)
        else:
            outputs, ctx.seen = weight.scaling.outputs(inputs, plain, bias)
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
            needed = ctx.needs_input_grad[0]
            for_x, for_scales = scaling.back(outer, plain, ctx.seen, for_inputs=needed)
        elif ctx.needs_input_grad[0]:
            for_x = outer @ plain
        if for_x is not None:
            for_x = for_x.view(ctx.shape)
        if ctx.needs_input_grad[1]:
            factors = Factors(outer, inputs) if scaling is None else scaling.factors(outer, ctx.seen)
            for_plain = outer.T @ factors.inputs
            ctx.weight.remember(for_plain, factors)
        if ctx.needs_input_grad[2]:
            for_bias = outer.sum(dim=0)
        return for_x, for_plain, for_bias, None, *for_scales
