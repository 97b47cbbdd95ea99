"""Networks that are a plain chain of layers."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import nn

from fedkd.continual.layers import Layer
from fedkd.models import Classifier, Conv2d, Flatten, MaxPool2d

LAYERS = (nn.Linear, nn.Conv2d, Conv2d)
"""Layers with units."""

BETWEEN = (
    *(nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Flatten, Flatten),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d),
    *(nn.MaxPool2d, MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
)
"""Modules that commute with a factor ≥ 0 per unit and keep units apart."""


def chain_of(network: nn.Module) -> tuple[Layer, ...]:
    """Return the layers of a network in the order of the forward pass, the head last.

    Raise `ValueError` with the reason if units cannot be scaled one by one.
    """
    layers: list[Layer] = []
    for name, module in _modules(network):
        if isinstance(module, nn.Linear | nn.Conv2d) and type(module) in LAYERS:
            if isinstance(module, nn.Conv2d) and module.groups != 1:
                raise ValueError(f"'{name}' is a grouped convolution")
            layers.append(Layer(name, module, False))
        elif type(module) not in BETWEEN or (isinstance(module, nn.Flatten) and module.start_dim != 1):
            raise ValueError(f"'{name}' is a {type(module).__name__}")
    if not layers or not isinstance(layers[-1].module, nn.Linear):
        raise ValueError("the last layer is not linear")
    if len({id(layer.module.weight) for layer in layers}) < len(layers):
        raise ValueError("two layers share a weight")
    for before, after in pairwise(layers):
        if inputs_of(after) % outputs_of(before):
            raise ValueError(f"'{after.name}' does not take the output of '{before.name}'")
    return (*layers[:-1], Layer(layers[-1].name, layers[-1].module, True))


def outputs_of(layer: Layer) -> int:
    """Return the number of a layer's units, or a convolution's channels."""
    return layer.module.weight.shape[0]


def inputs_of(layer: Layer) -> int:
    """Return the number of a layer's inputs, or a convolution's input channels."""
    return layer.module.weight.shape[1]


def _modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of the forward pass with their names."""
    if type(network) is Classifier:
        parts: Sequence[tuple[str, nn.Module]] = list(network.named_children())
    elif type(network) is nn.Sequential:
        parts = list(network.named_children())
    else:
        raise ValueError(f"{type(network).__name__} has its own forward pass")
    for name, module in parts:
        if type(module) is nn.Sequential:
            yield from ((f"{name}.{inner}", found) for inner, found in _modules(module))
        else:
            yield name, module
