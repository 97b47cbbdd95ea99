"""Copies of a model with other weights, without training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.training.losses import cross_entropy
from fedkd.training.weights import arrays_of, load_weights

Gradient = Callable[[Mapping[str, np.ndarray], np.ndarray], "tuple[float, dict[str, np.ndarray]]"]
"""Values of some weights by name and indices ``[B]`` of samples to a loss and its gradient."""


def frozen_copy(model: nn.Module, weights: Mapping[str, np.ndarray]) -> nn.Module:
    """Return a copy of a model with other weights, on its device, in evaluation mode, without gradients."""
    network = copy.deepcopy(model).requires_grad_(False).eval()
    load_weights(network, weights)
    return network


def gradient_of(
    network: nn.Module, model: nn.Module, of: Sequence[str], inputs: Tensor, labels: Tensor
) -> Gradient:
    """Return a function that computes the gradient of a cross entropy in some weights of a network.

    Args:
        network: Every call sets its weights in `of`, and only these have gradients.
        model: Computes logits with the network.
        inputs: Samples ``[n, *input_shape]``.
        labels: ``[n]`` int64.
    """
    named = dict(network.named_parameters())
    wanted = [named[name].requires_grad_() for name in of]

    def gradient(values: Mapping[str, np.ndarray], rows: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
        index = torch.from_numpy(rows).to(labels.device)
        with torch.no_grad():
            for name, parameter in zip(of, wanted, strict=True):
                parameter.copy_(torch.from_numpy(np.array(values[name])))
        with torch.enable_grad():
            loss = cross_entropy(model(inputs.index_select(0, index)), labels.index_select(0, index))
            found = torch.autograd.grad(loss, wanted, materialize_grads=True)
        return float(loss.detach()), arrays_of(dict(zip(of, found, strict=True)))

    return gradient
