"""What a model predicts, and how well."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.models.mode import predicting


@dataclass(frozen=True)
class Evaluation:
    """How a model does on labelled samples.

    Attributes:
        accuracy: Share of samples whose largest logit is the label's; nan without samples.
        loss: Mean cross entropy, added in float64; nan without samples.
        correct: ``[n]`` bool, which samples are classified correctly.
    """

    accuracy: float
    loss: float
    correct: Tensor


def predict_logits(model: nn.Module, x: Tensor, batch_size: int = 256) -> Tensor:
    """Return the logits ``[M, C]`` of samples ``[M, *input_shape]``, float32, on the device of `x`.

    The model predicts in evaluation mode and is put back in the mode it was in. The batches are always the
    same, because the size of a batch changes the last bits of its results.
    """
    starts = range(0, max(len(x), 1), batch_size)  # no samples are one empty batch: its output has C columns
    with predicting(model):
        batches = [model(x[start : start + batch_size]) for start in starts]
    return torch.cat(batches).float()


def evaluate(model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 256) -> Evaluation:
    """Return accuracy and loss of `model` on samples ``[n, *input_shape]`` with labels ``[n]``."""
    logits = predict_logits(model, x, batch_size)
    correct = logits.argmax(dim=1) == y
    return Evaluation(
        accuracy=correct.double().mean().item(),
        loss=F.cross_entropy(logits.double(), y).item(),
        correct=correct,
    )
