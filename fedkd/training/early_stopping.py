"""Stopping by the loss of held-out samples (Prechelt, "Early Stopping — But When?", 1998)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.training.evaluate import predict_in_batches


@dataclass(frozen=True, eq=False)
class EarlyStopping:
    """Stops training early and restores the best weights, perhaps the initial ones.

    Attributes:
        arrays: Held-out tensors ``[n, ...]``, n ≥ 1: inputs, then further arguments of `loss`.
        loss: Called as ``loss(logits, *arrays[1:])`` with the logits ``[n, C]`` in evaluation mode.
        patience: Epochs in a row without a lower loss before the stop, ≥ 1; usually 5 to 10.
        outputs: ``outputs(model, inputs)`` replaces the logits; None: the logits.
    """

    arrays: Sequence[Tensor]
    loss: Callable[..., Tensor]
    patience: int
    outputs: Callable[[Any, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"patience must be ≥ 1, got {self.patience}")
        if not len(self.arrays[0]):
            raise ValueError("early stopping needs held-out samples")


class BestWeights:
    """The weights of lowest held-out loss so far, with buffers and other trained tensors."""

    def __init__(self, stopping: EarlyStopping, model: nn.Module, tensors: Iterable[Tensor] = ()) -> None:
        self._stopping = stopping
        self._model = model
        every = [*model.parameters(), *model.buffers(), *tensors]
        self._tensors = list({id(tensor): tensor for tensor in every}.values())
        self._loss = self._held_out_loss()
        self._copies = self._copy()
        self._waited = 0

    @property
    def exhausted(self) -> bool:
        return self._waited >= self._stopping.patience

    def look(self) -> bool:
        """Compare the weights with the best so far; return True if they are better."""
        loss = self._held_out_loss()
        better = loss < self._loss
        if better:
            self._loss, self._copies, self._waited = loss, self._copy(), 0
        else:
            self._waited += 1
        return better

    def restore(self) -> None:
        with torch.no_grad():
            for tensor, best in zip(self._tensors, self._copies, strict=True):
                tensor.copy_(best)

    def _copy(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self._tensors]

    def _held_out_loss(self) -> float:
        inputs, *wanted = self._stopping.arrays
        outputs, model = self._stopping.outputs, self._model
        found = predict_in_batches(model, model if outputs is None else partial(outputs, model), inputs)
        return float(self._stopping.loss(found, *wanted))
