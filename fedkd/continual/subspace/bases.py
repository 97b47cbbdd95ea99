"""Subspaces of a layer's inputs, and gradients inside and outside of them.

A gradient of a weight ``[out, n]`` is a sum of products ``δ xᵀ`` with the layer's inputs x. A change of the
weight outside the span of old inputs changes nothing of their outputs (Saha, Garg and Roy, "Gradient
Projection Memory for Continual Learning", ICLR 2021). Decompositions are in float64 on the CPU.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.continual.context import LearnerContext
from fedkd.continual.layers import Layer, find_layers
from fedkd.continual.statistics import present_statistics
from fedkd.continual.subspace.canonical_basis import canonical_rotation
from fedkd.errors import UserError
from fedkd.models import evaluation_mode
from fedkd.training import NormWithStatistics, batch_starts

NOISE = 1e-12
"""Share of the energy below which a direction is rounding: bases are kept in float32."""
CHUNK = 256
"""Samples of one forward pass."""


def check_layers(name: str, network: nn.Module, *, key: str = "continual.learner") -> None:
    """Refuse a network that learner or strategy `name`, at the scenario's `key`, cannot protect.

    Raises:
        UserError: A convolution has groups or padding in words, or a matrix belongs to another kind of layer.
    """
    weights = set()
    for layer in find_layers(network).values():
        module = layer.module
        weights.add(layer.weight_name)
        if isinstance(module, nn.Conv2d) and (module.groups != 1 or isinstance(module.padding, str)):
            why = "has groups" if module.groups != 1 else f"pads '{module.padding}' instead of by a number"
            raise UserError(
                f"'{name}' cannot protect layer '{layer.name}', a convolution that {why}", key=key
            )
    for parameter_name, parameter in network.named_parameters():
        if parameter.dim() > 1 and parameter_name not in weights:
            raise UserError(
                f"'{name}' protects linear and convolutional layers only, but the network has a parameter"
                f" '{parameter_name}' of shape {list(parameter.shape)}",
                key=key,
            )


def heads_are_disjoint(units: Sequence[Tensor]) -> bool:
    """Return whether no two tasks, by their output units ``[C_t]``, share one."""
    together = torch.cat(list(units))
    return len(units) > 1 and len(together.unique()) == len(together)


def protected_layers(layers: Mapping[str, Layer], *, own_heads: bool) -> dict[str, Layer]:
    """Return the layers with inputs to protect, by name.

    With `own_heads`, each task has its own outputs, so the head needs no protection.
    """
    return {
        name: layer
        for name, layer in layers.items()
        if layer.module.weight.requires_grad and not (layer.is_head and own_heads)
    }


def draw(context: LearnerContext, purpose: str, count: int) -> tuple[Tensor, Tensor]:
    """Return up to `count` training samples ``[≤ count, *input_shape]`` of the present task and labels."""
    x, labels = context.samples()
    chosen = torch.randperm(len(x), generator=context.generator(purpose))[:count].to(x.device)
    return x.index_select(0, chosen), labels.index_select(0, chosen)


class _Columns:
    """Inputs of a weight, or a smaller matrix with the same second moments."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._parts: list[Tensor] = []
        self._moments: Tensor | None = None

    def add(self, inputs: Tensor) -> None:
        self._parts.append(self._layer.columns(inputs).double())
        if sum(len(part) for part in self._parts) > self._layer.fan_in:
            columns = torch.cat(self._parts)
            moments = columns.T @ columns
            self._moments = moments if self._moments is None else self._moments + moments
            self._parts = []

    def matrix(self) -> Tensor:
        """Return R ``[n, ≤ 2n]``."""
        columns = [part.T.cpu() for part in self._parts]
        if self._moments is not None:
            energies, directions = torch.linalg.eigh(self._moments.cpu())
            columns.append(directions * energies.clamp(min=0.0).sqrt())
        return torch.cat(columns, dim=1) if columns else torch.zeros(self._layer.fan_in, 0).double()


def layer_inputs(
    context: LearnerContext, layers: Mapping[str, Layer], x: Tensor, substitutes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the inputs of layers in evaluation mode by layer, as columns of R ``[n, k]`` float64 on the CPU.

    Convolutions have a column per patch. If columns outnumber rows, a smaller matrix with the same ``R Rᵀ``
    replaces them: it alone decides energies and directions.
    """
    found = {name: _Columns(layer) for name, layer in layers.items()}
    readers = {name: (layer, found[name].add) for name, layer in layers.items()}
    read_inputs(context, readers.values(), x, substitutes)
    return {name: columns.matrix() for name, columns in found.items()}


def read_inputs(
    context: LearnerContext,
    readers: Iterable[tuple[Layer, Callable[[Tensor], None]]],
    x: Tensor,
    substitutes: Mapping[str, Tensor],
) -> None:
    """Pass layer inputs in evaluation mode to their readers, chunk by chunk."""

    def hook(read: Callable[[Tensor], None]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: read(arguments[0].detach())

    hooks = [layer.module.register_forward_pre_hook(hook(read)) for layer, read in readers]
    try:
        with evaluation_mode(context.network):
            for part in context.batches(len(x), CHUNK):
                context.run(x[part], substitutes)
    finally:
        for registered in hooks:
            registered.remove()


def mean_gradients(
    context: LearnerContext,
    layers: Mapping[str, Layer],
    x: Tensor,
    labels: Tensor,
    effective: Callable[[], Mapping[str, Tensor]],
) -> dict[str, Tensor]:
    """Return the gradient ``[out, n]`` of the present task's mean cross entropy by layer, without dropout.

    Normalisation layers use the batch's statistics, as a new task has none yet, and keep their own.
    `effective` returns the effective parameters, with a graph back to the plain weights.
    """
    weights = [layer.module.weight for layer in layers.values()]
    total = [torch.zeros_like(weight) for weight in weights]
    seen = 0
    with _batch_statistics(context.network) as buffers:
        for start in batch_starts([context.network], len(x), CHUNK):
            part = slice(start, start + CHUNK)
            outputs = context.run(x[part], {**buffers, **effective()})
            loss = F.cross_entropy(context.logits_of(outputs, context.task), labels[part], reduction="sum")
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            for summed, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    summed += gradient
            seen += len(labels[part])
    if seen == 0:
        return {}
    return {
        name: layer.matrix(summed / seen).contiguous()
        for (name, layer), summed in zip(layers.items(), total, strict=True)
    }


@contextmanager
def _batch_statistics(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    with evaluation_mode(network), torch.enable_grad():
        for module in network.modules():
            if isinstance(module, NormWithStatistics):
                module.training = True
        yield {name: values.clone() for name, values in present_statistics(network).items()}


def residual_directions(inputs: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return the principal directions ``[n, m]`` of ``R − B Bᵀ R`` and their energies ``[m]``, descending.

    The directions are left singular vectors, orthonormal also to B ``[n, r]``; energies are squared singular
    values. Rounding is left out. The order of inputs R ``[n, k]`` changes no direction.
    """
    residual = inputs - basis @ (basis.T @ inputs)
    vectors, values, _ = torch.linalg.svd(residual, full_matrices=False)
    energies = values.square()
    floor = NOISE * float(inputs.square().sum())
    vectors = vectors @ torch.from_numpy(canonical_rotation(vectors.numpy(), energies.numpy(), floor))
    # A weak residual is mostly rounding of the basis: orthonormalise both together.
    vectors, triangle = torch.linalg.qr(vectors - basis @ (basis.T @ vectors))
    return vectors * triangle.diagonal().sign(), energies[: vectors.shape[1]]


def count_leading_energies(energies: Tensor, goal: float) -> int:
    """Return the number of leading `energies` whose sum reaches `goal`."""
    if goal <= 0.0:
        return 0
    return min(int((energies.cumsum(0) < goal).sum()) + 1, len(energies))


def basis_energies(inputs: Tensor, basis: Tensor) -> Tensor:
    """Return ``oᵀ R Rᵀ o`` of every column o of a basis ``[n, r]``, as ``[r]``."""
    return (basis.T @ inputs).square().sum(dim=1)


def relatedness(gradient: Tensor, basis: Tensor) -> float:
    """Return ``‖∇ B Bᵀ‖ / ‖∇‖``, the share of a gradient ``[out, n]`` in a subspace; 0 for no gradient."""
    length = gradient.double().norm()
    if length == 0:
        return 0.0
    # The columns of B are orthonormal: a product with Bᵀ keeps the norm. Rounded ones may come out above 1.
    return min(float((gradient.double() @ basis.double()).norm() / length), 1.0)
