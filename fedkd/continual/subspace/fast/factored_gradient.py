"""Factored gradients: products with few inputs in place of products with a weight and its gradient.

The gradient of a weight ``[out, n]`` is ``δᵀ X``, with the inputs X ``[B, n]`` of a batch and the gradients δ
``[B, out]`` of the outputs. So its projection is ``δᵀ (X P)``, and ``x (w P)ᵀ`` is ``(x Pᵀ) wᵀ``: cheaper for
fewer inputs than outputs. In float64, weights agree with the plain code within 1e-10.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedkd.training import is_transformed, tensor_version, tree_map_only


class Factors(NamedTuple):
    """The factors of a weight's gradient ``δᵀ X``.

    Attributes:
        outputs: δ ``[B, out]``, gradients of the outputs.
        inputs: X ``[B, n]``.
        inside: ``X B`` ``[B, R]`` with the basis of the scales, where it is known.
        outside: ``X − X B Bᵀ`` ``[B, n]``, where it is known.
    """

    outputs: Tensor
    inputs: Tensor
    inside: Tensor | None = None
    outside: Tensor | None = None


class Saved(NamedTuple):
    """Tensors saved for the backward pass: inputs ``[B, n]``, these times the basis, and times each B_j."""

    inputs: Tensor
    inside: Tensor
    along: Sequence[Tensor]


class Scaling:
    """Adds ``Σ_j w B_j (Q_j − I) B_jᵀ`` to a product with a weight w whose ``w B_j`` are constant.

    Args:
        weight: w ``[out, n]``.
        basis: ``[n, R]``, has the columns of all B_j, each once, and perhaps others.
        places: Positions ``[r_j]`` of the columns of B_j in the basis.
        scales: Q_j ``[r_j, r_j]``.
    """

    def __init__(
        self, weight: Tensor, basis: Tensor, places: Sequence[Tensor], scales: Sequence[Tensor]
    ) -> None:
        self.scales = tuple(scales)
        self.basis = basis
        self._sizes = [len(place) for place in places]
        # All B_j side by side, [n, Σ r_j]. Most columns are in several: inputs are multiplied by them once.
        self._places = torch.cat(list(places))
        # Views are made once; Q_j changes in place, and its views with it.
        self._scales_across = [scale.detach().T for scale in scales]
        self._prepare(weight)

    def _prepare(self, weight: Tensor) -> None:
        self._bases = self.basis.index_select(1, self._places)
        self._bases_across = self._bases.T
        self._known = weight @ self._bases
        self._known_across = self._known.T

    @property
    def tensors(self) -> list[Tensor]:
        """All factors of the products below but inputs and gradients."""
        known = [self._known, self._known_across, self._bases, self._bases_across]
        return [*self.scales, self.basis, self._places, *self._scales_across, *known]

    def outputs(self, inputs: Tensor, plain: Tensor, bias: Tensor | None) -> tuple[Tensor, Saved]:
        """Return ``x w̃ᵀ + b`` of inputs ``[B, n]``: ``x wᵀ + b + Σ_j (x B_j) (Q_j − I)ᵀ (w B_j)ᵀ``."""
        saved = self._save(inputs)
        outputs = F.linear(inputs, plain, bias)
        outputs.addmm_(self._less_own(saved.along, self._scales_across), self._known_across)
        return outputs, saved

    def back(
        self, outer: Tensor, plain: Tensor, saved: Saved, *, for_inputs: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradients of the inputs, ``δ w̃``, or None, and of the scales, ``(δ w B_j)ᵀ (x B_j)``.

        `outer` is the outputs' gradient δ ``[B, out]``, `plain` the weight w ``[out, n]``.
        """
        back = self._parts(outer @ self._known)
        gradients = self._gradients(saved.along, back)
        return (self._with_scales(outer @ plain, back) if for_inputs else None), gradients

    def factors(self, outer: Tensor, saved: Saved) -> Factors:
        """Return the factors of w's gradient, which bypasses the scales."""
        return Factors(outer, saved.inputs, saved.inside)

    def _save(self, inputs: Tensor) -> Saved:
        inside = inputs @ self.basis
        return Saved(inputs, inside, self._parts(inside.index_select(1, self._places)))

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
    """Scales the inputs of a weight w whose ``w B_j`` are learned too.

    ``x' = x + Σ_j (x B_j) (Q_j − I)ᵀ B_jᵀ`` meets the weight, whose gradient is a product with x'.
    """

    def _prepare(self, weight: Tensor) -> None:
        self._bases = self.basis.index_select(1, self._places)
        self._bases_across = self._bases.T

    @property
    def tensors(self) -> list[Tensor]:
        known = [self._bases, self._bases_across]
        return [*self.scales, self.basis, self._places, *self._scales_across, *known]

    def outputs(self, inputs: Tensor, plain: Tensor, bias: Tensor | None) -> tuple[Tensor, Saved]:
        saved = self._save(inputs)
        scaled = torch.addmm(inputs, self._less_own(saved.along, self._scales_across), self._bases_across)
        return F.linear(scaled, plain, bias), saved._replace(inputs=scaled)

    def back(
        self, outer: Tensor, plain: Tensor, saved: Saved, *, for_inputs: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        through = outer @ plain
        back = self._parts(through @ self._bases)
        gradients = self._gradients(saved.along, back)
        return (self._with_scales(through, back) if for_inputs else None), gradients

    def factors(self, outer: Tensor, saved: Saved) -> Factors:
        return Factors(outer, saved.inputs)


class FactoredWeight(Tensor):
    """Replaces the weight of a linear layer in training steps, and holds its gradient's factors.

    `F.linear` of few inputs never forms the effective weight; all other functions get it.
    """

    plain: Tensor
    """The layer's own weight w ``[out, n]``."""
    effective: Callable[[], Tensor]
    """Returns the effective weight ``[out, n]``, with a graph; in a step the module's own is this one."""
    max_inputs: int
    """Largest number of inputs B that are transformed in place of the weight."""
    scaling: Scaling | None
    """The part of the effective weight besides w."""
    _product: tuple[Tensor, int, Factors] | None

    @staticmethod
    def make(
        plain: Tensor, effective: Callable[[], Tensor], max_inputs: int, scaling: Scaling | None = None
    ) -> FactoredWeight:
        """Return a weight with these attributes."""
        weight = plain.detach().as_subclass(FactoredWeight)
        weight.plain, weight.effective = plain, effective
        weight.max_inputs, weight.scaling, weight._product = max_inputs, scaling, None
        return weight

    @property
    def tensors(self) -> list[Tensor]:
        """All factors of products with the effective weight but inputs."""
        return [self.plain, *([] if self.scaling is None else self.scaling.tensors)]

    def remember(self, gradient: Tensor, factors: Factors) -> None:
        """Record that w's gradient is the product of these factors."""
        held = gradient.detach()  # another reference to the gradient itself would have autograd copy it
        self._product = held, tensor_version(held), factors

    def factors_of(self, gradient: Tensor) -> Factors | None:
        """Return the factors of w's gradient if it is ``δᵀ X`` of the last call alone, else None.

        The memory of ``δᵀ X`` is held here, so no other tensor has it, and its version counts changes.
        """
        if self._product is None:
            return None
        held, unchanged, factors = self._product
        if gradient.data_ptr() != held.data_ptr() or tensor_version(gradient) != unchanged:
            return None
        return factors if gradient.shape == held.shape and gradient.is_contiguous() else None

    def forget(self) -> None:
        """Drop the last call."""
        self._product = None

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return _linear(*args, **kwargs)
        args, kwargs = tree_map_only(FactoredWeight, lambda weight: weight.effective(), (args, kwargs))
        return func(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if (
        isinstance(weight, FactoredWeight)
        and not isinstance(input, FactoredWeight)
        and not isinstance(bias, FactoredWeight)
        and input.numel() <= weight.max_inputs * input.shape[-1]
        # Reduced precision is for products with weights, not for projections.
        and not torch.is_autocast_enabled(input.device.type)
        and not is_transformed()
    ):
        scales = () if weight.scaling is None else weight.scaling.scales
        out: Tensor = _FactoredLinear.apply(input, weight.plain, bias, weight, *scales)
        return out
    return F.linear(*tree_map_only(FactoredWeight, lambda own: own.effective(), (input, weight, bias)))


class _FactoredLinear(torch.autograd.Function):
    """``x w̃ᵀ + b``; the gradient of w bypasses the scales."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plain: Tensor, bias: Tensor | None, weight: FactoredWeight, *scales: Tensor
    ) -> Tensor:
        inputs = x.reshape(-1, x.shape[-1])
        ctx.weight, ctx.shape, ctx.saved = weight, x.shape, None
        if weight.scaling is None:
            outputs = F.linear(inputs, plain, bias)
        else:
            outputs, ctx.saved = weight.scaling.outputs(inputs, plain, bias)
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
            for_x, for_scales = scaling.back(outer, plain, ctx.saved, for_inputs=needed)
        elif ctx.needs_input_grad[0]:
            for_x = outer @ plain
        if for_x is not None:
            for_x = for_x.view(ctx.shape)
        if ctx.needs_input_grad[1]:
            factors = Factors(outer, inputs) if scaling is None else scaling.factors(outer, ctx.saved)
            for_plain = outer.T @ factors.inputs
            ctx.weight.remember(for_plain, factors)
        if ctx.needs_input_grad[2]:
            for_bias = outer.sum(dim=0)
        return for_x, for_plain, for_bias, None, *for_scales
