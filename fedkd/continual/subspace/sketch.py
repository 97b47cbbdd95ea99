"""Random sketches of a layer's inputs, whose sum is a sketch of all inputs."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.layers import Layer
from fedkd.continual.subspace.bases import read_inputs


class Sketch(NamedTuple):
    """Sketch ``(A − U Uᵀ A) Ω`` of a layer's inputs A ``[n, k]`` outside of a protected basis U.

    `columns` are ``[n, width]`` float64 on the CPU, `left` is ``‖A − U Uᵀ A‖² / ‖A‖²``, 0 for zero inputs.
    """

    columns: Tensor
    left: float


class _Sketcher:
    """Sketches inputs one chunk at a time, with fresh random numbers for each."""

    def __init__(self, layer: Layer, basis: Tensor, width: int, generator: torch.Generator) -> None:
        self._layer, self._basis, self._width, self._generator = layer, basis.double(), width, generator
        self._sum = torch.zeros(layer.fan_in, width).double()
        self._energy = self._energy_left = 0.0

    def add(self, inputs: Tensor) -> None:
        rows = self._layer.columns(inputs).double().cpu()  # Aᵀ [k, n]
        left = rows - (rows @ self._basis) @ self._basis.T
        uniform = torch.rand(len(rows), self._width, generator=self._generator, dtype=torch.float64)
        self._sum.addmm_(left.T, 2.0 * uniform - 1.0)
        self._energy += float(rows.square().sum())
        self._energy_left += float(left.square().sum())

    def sketch(self) -> Sketch:
        return Sketch(self._sum, self._energy_left / self._energy if self._energy > 0.0 else 0.0)


def layer_sketches(
    context: LearnerContext,
    layers: Mapping[str, Layer],
    x: Tensor,
    substitutes: Mapping[str, Tensor],
    bases: Mapping[str, Tensor],
    width: int | None = None,
) -> dict[str, Sketch]:
    """Return sketches of the inputs of layers in evaluation mode (see `Sketch`).

    Ω ``[k, width]`` is uniform in [−1, 1], drawn for this client, task and layer, with a row per column of A.
    Without a basis, the sum of the clients' sketches is ``[A_1 … A_N] [Ω_1; …; Ω_N]``, the sketch of all
    inputs. A convolution has an input for each patch. `bases` are orthonormal columns U ``[n, r]`` on the
    CPU; `width` None: n.
    """
    sketchers = {}
    for name, layer in layers.items():
        basis = bases.get(name, torch.zeros(layer.fan_in, 0))
        generator = context.generator(f"sketch-{name}")
        sketchers[name] = _Sketcher(layer, basis, width or layer.fan_in, generator)
    read_inputs(context, [(layers[name], own.add) for name, own in sketchers.items()], x, substitutes)
    return {name: own.sketch() for name, own in sketchers.items()}
