"""A network's layers for learners: weights of inputs, and all other parameters."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.training import two_sided_padding


@dataclass(frozen=True)
class Layer:
    """A linear or convolutional layer: its module by name, e.g. ``"body.1"``; the head makes the outputs."""

    name: str
    module: nn.Linear | nn.Conv2d
    is_head: bool

    @property
    def weight_name(self) -> str:
        """Name of the layer's weight among the network's parameters."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def bias_name(self) -> str:
        """Name that the layer's bias has, if it has one."""
        return f"{self.name}.bias" if self.name else "bias"

    @property
    def fan_in(self) -> int:
        """Inputs n of one output: columns of the weight as a matrix."""
        return self.module.weight[0].numel()

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight, or its gradient, as a matrix ``[out, n]``."""
        return weight.reshape(weight.shape[0], -1)

    def columns(self, inputs: Tensor) -> Tensor:
        """Return the vectors ``[B·positions, n]`` that the weight multiplies.

        `inputs` are ``[B, ..., n]``, or ``[B, c, h, w]`` of an ungrouped convolution.
        """
        if isinstance(self.module, nn.Linear):
            return inputs.reshape(-1, inputs.shape[-1])
        conv = self.module
        if isinstance(conv.padding, str):
            raise ValueError(f"layer '{self.name}': padding must be given in numbers, got '{conv.padding}'")
        padded = inputs
        if conv.padding_mode != "zeros":
            padded = F.pad(inputs, two_sided_padding(conv), mode=conv.padding_mode)
        patches = F.unfold(
            padded,
            conv.kernel_size,
            dilation=conv.dilation,
            padding=conv.padding if conv.padding_mode == "zeros" else 0,
            stride=conv.stride,
        )
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def find_layers(network: nn.Module) -> dict[str, Layer]:
    """Return the network's linear and convolutional layers by name, in its order.

    The head is the module called ``head``, as in every model of the zoo, else the last linear layer.
    """
    found = {
        name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }
    linear = [name for name, module in found.items() if isinstance(module, nn.Linear)]
    head = "head" if "head" in found else (linear or [""])[-1]
    return {name: Layer(name, module, name == head) for name, module in found.items()}


def head_names(layers: Mapping[str, Layer]) -> set[str]:
    """Return the names of the weights and biases that make the outputs."""
    heads = [layer for layer in layers.values() if layer.is_head]
    biases = {layer.bias_name for layer in heads if layer.module.bias is not None}
    return {layer.weight_name for layer in heads} | biases
