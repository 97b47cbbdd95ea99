"""What is to be trained, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fedkd.training.optimizer import OptimizerSpec


class StepRules(Protocol):
    """What a training step obeys besides its loss, such as a learner's protection of earlier tasks."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The leaf tensors that the optimiser changes, instead of all of the model's parameters."""

    def before_step(self) -> None:
        """Called before every forward pass."""

    def penalty(self, inputs: Tensor, loss: Tensor) -> Tensor | None:
        """Return what is added to the loss of a batch of inputs `[B, ...]`, a scalar; None: nothing."""

    def after_backward(self) -> None:
        """Called when all gradients are known, to change them in place."""

    def after_step(self) -> None:
        """Called when the optimiser has changed the parameters."""

    def after_epoch(self) -> None:
        """Called after every epoch."""


@dataclass(frozen=True, eq=False)
class TrainJob:
    """Some epochs of training, prepared: all that an executor needs, and nothing of where it came from.

    Attributes:
        model: Trained in place, on the device of the arrays.
        arrays: Tensors ``[n, ...]`` of one device: inputs, labels, targets, whatever `loss` wants.
        loss: Called as ``loss(model, *batch)`` with a batch ``[B, ...]`` of each array; returns the mean over
            the batch.
        optimizer: The optimiser and its hyper-parameters.
        epochs: Passes over the samples.
        batch_size: Samples a step.
        generator: CPU generator of the permutations; it moves on as the job is run.
        seed: Derived seed of what the model draws itself (dropout).
        autocast: bfloat16 autocast on a GPU; ignored on a CPU.
        correction: What is added to every gradient, after clipping: one tensor for each parameter that
            requires a gradient, in the model's order.
        rules: What every step obeys besides; they have the last word on gradients and weights.
    """

    model: nn.Module
    arrays: Sequence[Tensor]
    loss: Callable[..., Tensor]
    optimizer: OptimizerSpec
    epochs: int
    batch_size: int
    generator: torch.Generator
    seed: int
    autocast: bool = False
    correction: Sequence[Tensor] | None = None
    rules: StepRules | None = None


@dataclass(frozen=True)
class FitResult:
    """What came of a job.

    Attributes:
        loss: Mean loss over the samples of all epochs, each at the weights it was trained with; nan if there
            was no step.
        steps: Optimiser steps.
        samples: Samples seen, all epochs together.
    """

    loss: float
    steps: int
    samples: int
