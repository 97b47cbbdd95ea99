"""Weights of models as NumPy arrays, and models with given weights."""

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.models import frozen_base
from fedkd.training.losses import cross_entropy


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    """Return copies of all parameters and buffers by name."""
    return tensors_to_arrays(model.state_dict())


def exchanged_weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Return copies of what strategies see: all weights, but with adapters no frozen base."""
    base = frozen_base(model)
    return tensors_to_arrays({name: t for name, t in model.state_dict().items() if name not in base})


def tensors_to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return contiguous copies of tensors of any memory layout."""
    return {name: np.array(tensor.detach().cpu().numpy(), order="C") for name, tensor in tensors.items()}


def arrays_to_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return copies of arrays as tensors on the CPU."""
    return {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}


def trainable_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that require a gradient, in the model's order."""
    named = model.named_parameters(remove_duplicate=False)
    return tuple(name for name, parameter in named if parameter.requires_grad)


def load_weights(model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Set all parameters and buffers, cast to each tensor's type; an absent frozen base stays."""
    base = frozen_base(model).difference(weights)
    held = {name: tensor for name, tensor in model.state_dict().items() if name in base} if base else {}
    model.load_state_dict({**held, **arrays_to_tensors(weights)})


Gradient = Callable[[Mapping[str, np.ndarray], np.ndarray], "tuple[float, dict[str, np.ndarray]]"]
"""Values of some weights by name and indices ``[B]`` of samples to a loss and its gradient."""


def frozen_copy(model: nn.Module, weights: Mapping[str, np.ndarray]) -> nn.Module:
    """Return a frozen copy of a model with other weights, on its device, in evaluation mode."""
    network = copy.deepcopy(model).requires_grad_(False).eval()
    load_weights(network, weights)
    return network


def gradient_function(
    network: nn.Module,
    model: nn.Module,
    of: Sequence[str],
    inputs: Tensor,
    labels: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Gradient:
    """Return a function for the gradient of a network's mean loss in the weights `of`.

    Every call sets these weights. `model` computes outputs of `inputs` ``[n, *input_shape]`` with the
    network; `loss_of` compares them with `labels` ``[n]``.
    """
    named = dict(network.named_parameters())
    wanted = [named[name].requires_grad_() for name in of]

    def gradient(values: Mapping[str, np.ndarray], rows: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        index = torch.from_numpy(rows).to(labels.device)
        with torch.no_grad():
            for name, parameter in zip(of, wanted, strict=True):
                parameter.copy_(torch.from_numpy(np.array(values[name])))
        with torch.enable_grad():
            loss = loss_of(model(inputs.index_select(0, index)), labels.index_select(0, index))
            found = torch.autograd.grad(loss, wanted, materialize_grads=True)
        return float(loss.detach()), tensors_to_arrays(dict(zip(of, found, strict=True)))

    return gradient
