"""Tables of tensors, such as a module's parameters and buffers, as NumPy arrays, and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn


def weights_of(model: nn.Module) -> dict[str, np.ndarray]:
    """Return copies of all parameters and buffers, normalisation statistics included, by name."""
    return arrays_of(model.state_dict())


def arrays_of(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Return copies of tensors, contiguous whatever their memory layout on their device."""
    return {name: np.array(tensor.detach().cpu().numpy(), order="C") for name, tensor in tensors.items()}


def tensors_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Return copies of arrays as tensors on the CPU."""
    return {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}


def trainable_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that require a gradient, in the model's order."""
    named = model.named_parameters(remove_duplicate=False)
    return tuple(name for name, parameter in named if parameter.requires_grad)


def load_weights(model: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Set all parameters and buffers; values are cast to each tensor's own type."""
    model.load_state_dict(tensors_of(weights))
