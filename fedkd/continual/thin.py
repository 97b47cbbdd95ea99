"""Weights that multiply few inputs, and what can be computed with those inputs instead of with the weights.

The gradient of a weight ``[out, n]`` is ``δᵀ X``, with the inputs X ``[B, n]`` of a batch and the gradients δ
``[B, out]`` of the outputs. So a projection of it is ``δᵀ (X P)``, and ``x (w P)ᵀ`` is ``(x Pᵀ) wᵀ``: if a
batch has fewer inputs than the layer has outputs, it is cheaper to transform the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_map_only


class Scaling:
    """What ``Σ_j w B_j (Q_j − I) B_jᵀ`` adds to a product with a weight w, while all ``w B_j`` stay.

    Args:
        weight: w ``[out, n]``.
        basis: ``[n, R]``, the columns of all B_j, each once.
        places: Which of them are those of B_j, int64 ``[r_j]``.
        scales: Q_j ``[r_j, r_j]``.
    """

    def __init__(
        self, weight: Tensor, basis: Tensor, places: Sequence[Tensor], scales: Sequence[Tensor]
    ) -> None:
        self.scales = tuple(scales)
        self._basis = basis
        self._sizes = [len(place) for place in places]
        # One B_j beside the other, [n, Σ r_j]. Most columns are in several: inputs meet them once.
        self._places = torch.cat(list(places))
        self._bases = basis.index_select(1, self._places)
        self._known = weight @ self._bases

    @property
    def tensors(self) -> list[Tensor]:
        """All that the products below are of, besides inputs and gradients."""
        return [*self.scales, self._basis, self._places, self._bases, self._known]

    def along(self, inputs: Tensor) -> Tensor:
        """Return ``x B_j`` of inputs ``[B, n]``, one beside the other, ``[B, Σ r_j]``."""
        return (inputs @ self._basis).index_select(1, self._places)

    def add_to(self, outputs: Tensor, along: Tensor) -> None:
        """Add ``Σ_j (x B_j) (Q_j − I)ᵀ (w B_j)ᵀ`` to ``x wᵀ``, given all ``x B_j``."""
        outputs.addmm_(self._less_own(along, [scale.T for scale in self.scales]), self._known.T)

    def back(self, outer: Tensor) -> Tensor:
        """Return ``δ w B_j`` of the outputs' gradient δ ``[B, out]``, one beside the other."""
        return outer @ self._known

    def add_to_inputs(self, gradient: Tensor, back: Tensor) -> None:
        """Add ``Σ_j δ w B_j (Q_j − I) B_jᵀ`` to the gradient ``δ w`` of inputs, given all ``δ w B_j``."""
        gradient.addmm_(self._less_own(back, self.scales), self._bases.T)

    def gradients(self, along: Tensor, back: Tensor) -> list[Tensor]:
        """Return the gradients ``(δ w B_j)ᵀ (x B_j)`` of the scales."""
        pairs = zip(self._parts(back), self._parts(along), strict=True)
        return [outer.T @ inputs for outer, inputs in pairs]

    def _parts(self, whole: Tensor) -> Sequence[Tensor]:
        return whole.split_with_sizes(self._sizes, 1)

    def _less_own(self, whole: Tensor, factors: Sequence[Tensor]) -> Tensor:
        pairs = zip(self._parts(whole), factors, strict=True)
        return torch.cat([torch.addmm(own, own, factor, beta=-1.0) for own, factor in pairs], dim=1)


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
    _product: tuple[Tensor, int, Tensor, Tensor] | None

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

    def remember(self, gradient: Tensor, outputs: Tensor, inputs: Tensor) -> None:
        """Take down that w gets a gradient ``δᵀ X`` of δ ``[B, out]`` and X ``[B, n]``."""
        held = gradient.detach()  # another reference to the gradient itself would have autograd copy it
        self._product = held, held._version, outputs, inputs

    def factors_of(self, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return δ ``[B, out]`` and X ``[B, n]`` if w's gradient is ``δᵀ X`` of the last call and no more.

        None if it is, or may be, anything else: the sum over several calls, or changed since, by a penalty,
        by clipping or by a correction. Certain, because the memory of ``δᵀ X`` is held here and cannot
        have become another tensor's, and every change in place counts up its version.
        """
        if self._product is None:
            return None
        held, version, outputs, inputs = self._product
        if gradient.data_ptr() != held.data_ptr() or gradient._version != version:
            return None
        return (outputs, inputs) if gradient.shape == held.shape and gradient.is_contiguous() else None

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
        outputs = F.linear(inputs, plain, bias)
        ctx.weight, ctx.shape = weight, x.shape
        ctx.save_for_backward(inputs, plain)
        if weight.scaling is not None:
            ctx.along = weight.scaling.along(inputs)
            weight.scaling.add_to(outputs, ctx.along)
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
            back = scaling.back(outer)
            for_scales = scaling.gradients(ctx.along, back)
        if ctx.needs_input_grad[0]:
            for_x = outer @ plain
            if scaling is not None:
                scaling.add_to_inputs(for_x, back)
            for_x = for_x.view(ctx.shape)
        if ctx.needs_input_grad[1]:
            for_plain = outer.T @ inputs
            ctx.weight.remember(for_plain, outer, inputs)
        if ctx.needs_input_grad[2]:
            for_bias = outer.sum(dim=0)
        return for_x, for_plain, for_bias, None, *for_scales
