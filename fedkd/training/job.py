"""What is to be trained, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from fedkd.training.alongside import Alongside
from fedkd.training.chance import Hits
from fedkd.training.early_stopping import EarlyStopping
from fedkd.training.optimizer import OptimizerSpec


class StepRules(Protocol):
    """What a training step obeys besides its loss, such as a learner's protection of earlier tasks.

    A step has one batch, or `TrainJob.accumulate` of them, each with forward and backward passes of its own.
    """

    @property
    def idle(self) -> bool:
        """Whether steps are as they would be without these rules, which then need not be asked in each."""

    @property
    def kind(self) -> Hashable | None:
        """What rules agree in that make the same of the same tensors in every step; None: nobody knows."""

    @property
    def reads(self) -> Sequence[Tensor]:
        """Tensors that a step reads besides the model's, always in one order, if the rules have a kind.

        It may change them in place.
        """

    def draw(self) -> Sequence[Tensor]:
        """Draw what the next step uses besides its batch; asked before every step, if the rules have a kind.

        What is drawn in the step itself a recording would not draw anew.
        """

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The leaf tensors that the optimiser changes, instead of all of the model's parameters."""

    def before_step(self) -> None:
        """Called before the forward pass of every batch."""

    def penalty(self, batch: Sequence[Tensor], loss: Tensor) -> Tensor | None:
        """Return what is added to the loss of a batch, `[B, ...]` of each array, a scalar; None: nothing.

        Called for every batch. In a step of several, a penalty weighs as its batch's loss does, so that they
        average to one penalty.
        """

    def after_backward(self) -> None:
        """Called once a step, when its gradients are averaged, clipped and corrected, to change them."""

    def after_step(self) -> None:
        """Called when the optimiser has changed the parameters, as a part of the step."""

    def after_epoch(self) -> None:
        """Called after every epoch."""

    def before_evaluation(self) -> None:
        """Called before the model predicts held-out samples, which it does between epochs."""


@dataclass(frozen=True, eq=False)
class Beside:
    """A network that is trained in the same steps as a job's model, by a loss that knows of it.

    Attributes:
        name: Tells it from others of the job.
        network: Trained in place, on the device of the arrays.
        lr: Its learning rate; None: the optimiser's.
    """

    name: str
    network: nn.Module
    lr: float | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """Its parameters that require a gradient."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]


@dataclass(frozen=True, eq=False)
class TrainJob:
    """Some epochs of training, prepared: all that an executor needs, and nothing of where it came from.

    Attributes:
        model: Trained in place, on the device of the arrays.
        arrays: Tensors ``[n, ...]`` of one device: inputs, labels, targets, whatever `loss` wants.
        loss: Called as ``loss(model, *batch)`` with a batch ``[B, ...]`` of each array, of those `alongside`
            too; returns the mean over the batch.
        optimizer: The optimiser and its hyper-parameters.
        epochs: Passes over the samples.
        batch_size: Samples a step.
        generator: CPU generator of the permutations; it moves on as the job is run.
        seed: Derived seed of what the model draws itself (dropout).
        autocast: bfloat16 autocast on a GPU; ignored on a CPU.
        correction: What is added to every gradient, after clipping: one tensor for each parameter that
            requires a gradient, in the model's order.
        rules: What every step obeys besides; they have the last word on gradients and weights.
        accumulate: Batches a step, ≥ 1: its gradient is that of the mean over all their samples, as if they
            were one batch, but in the memory of a small one; only BatchNorm sees them apart. The last step of
            an epoch may have fewer. Raise it instead of `batch_size` where a batch does not fit the memory.
        lr_schedule: How the learning rate changes over the steps of the job: not, or along half a cosine down
            to zero after the last of all epochs.
        early_stopping: Whether to stop before the last epoch, and go back to the best weights; what rules
            have gathered on the way stays. With it, a loss that is no finite number ends the training instead
            of being an error.
        scored_loss: Called as `loss` is and in its place in epochs that may be the last; returns what `loss`
            does, and how many of the batch were classified correctly, a scalar. None: nobody counts.
        kind: Names what the job is, for executors that run several together: jobs of equal kinds differ in
            weights, arrays, constants, corrections, generators and seeds alone. None: it is like no other.
        replayable: Whether the losses compute the same from the same tensors whenever they are called, and do
            nothing else: then a step may be recorded and replayed (see `fedkd.training.replay`).
        alongside: Other samples of which a batch comes along with every batch, in an order of their own, and
            of which rules and epochs do not know; None: there are none.
        constants: Tensors that the losses are called with after the batches, such as the weights that they
            pull back to; the same in every step.
        guessing: How many of the samples are right for whoever always answers with their most frequent class.
        optimizer_state: What the optimiser remembers of earlier jobs (`FitResult.optimizer_state`, an empty
            table at first), which it continues exactly; None: it starts fresh and nobody keeps its state.
        beside: Networks that are trained along; each is clipped alone. A job with any has no `kind`.

    Raises:
        ValueError: `accumulate` is less than 1, or a job of a kind has networks beside its model.
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
    accumulate: int = 1
    lr_schedule: Literal["constant", "cosine"] = "constant"
    early_stopping: EarlyStopping | None = None
    optimizer_state: Mapping[str, Tensor] | None = None
    scored_loss: Callable[..., tuple[Tensor, Tensor]] | None = None
    guessing: int = 0
    kind: Hashable | None = None
    replayable: bool = False
    constants: Sequence[Tensor] = ()
    alongside: Alongside | None = None
    beside: Sequence[Beside] = ()

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be ≥ 1, got {self.accumulate}")
        if self.beside and self.kind is not None:
            raise ValueError("a job with networks beside its model is like no other, so its kind is None")

    def signature(self, tensors: Mapping[str, Tensor] | None = None) -> Hashable:
        """Return what decides, besides the sizes of batches, which kernels a step of the job runs.

        Args:
            tensors: The model's parameters and buffers by name, if they are at hand.
        """
        if tensors is None:
            tensors = dict([*self.model.named_parameters(), *self.model.named_buffers()])
        return (
            self.kind,
            repr(self.model),  # nothing says that equal shapes are of equal layers
            *((name, t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for name, t in tensors.items()),
            *((array.shape[1:], array.dtype, array.device) for array in self.arrays),
            None if self.alongside is None else self.alongside.size,
            *((array.shape[1:], array.dtype, array.device) for array in self._arrays_alongside()),
            *((constant.shape, constant.dtype) for constant in self.constants),
            (self.optimizer, self.batch_size, self.autocast, self.correction is None),
            (self.optimizer_state is None, self.scored_loss is None),
        )

    def _arrays_alongside(self) -> Sequence[Tensor]:
        return () if self.alongside is None else self.alongside.arrays

    def draw_alongside(self) -> list[Tensor]:
        """Return the next batch of each array that comes along with a batch; empty: none does."""
        return [] if self.alongside is None else self.alongside.draw()


@dataclass(frozen=True)
class FitResult:
    """What came of a job.

    Attributes:
        loss: Mean loss over the samples of all epochs, each at the weights it was trained with; nan if there
            was no step.
        steps: Optimiser steps.
        samples: Samples seen, all epochs together.
        hits: How many samples were classified correctly in the last epoch, each at the weights it was trained
            with; None if nobody counted, or there was no step.
        optimizer_state: What the optimiser remembers at the weights that the job ends with: tensors on the
            device by names such as ``"exp_avg/head.weight"`` (see `fedkd.training.optimizer_state`). None if
            the job's is.
    """

    loss: float
    steps: int
    samples: int
    hits: Hits | None = None
    optimizer_state: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)


def together(results: Sequence[FitResult]) -> FitResult:
    """Return what came of several jobs of a model, one after another; of its optimiser's states none."""
    samples = sum(result.samples for result in results)
    total = 0.0
    for result in results:
        if result.samples:
            total += result.loss * result.samples
    hits = [result.hits for result in results if result.hits is not None]
    return FitResult(
        total / samples if samples else float("nan"),
        sum(result.steps for result in results),
        samples,
        hits[-1] if hits else None,
    )
