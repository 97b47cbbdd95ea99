"""Reading a model's predictions without changing the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def predicting(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode without gradients, and every module back in its own mode afterwards.

    Not `torch.inference_mode`: what is predicted inside may become the target of a training step.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
