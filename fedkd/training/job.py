"""Training jobs and their results."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from fedkd.training.early_stopping import EarlyStopping
from fedkd.training.majority_guessing import TrainingHits
from fedkd.training.optimizer import OptimizerSpec


class AuxBatches:
    """Endless shuffled batches of tensors ``[m, ...]``, m ≥ 1, over epochs and jobs."""

    def __init__(self, arrays: Sequence[Tensor], batch_size: int, generator: torch.Generator) -> None:
        self.arrays = arrays
        self.size = min(batch_size, len(arrays[0]))
        self._generator = generator
        self._waiting = torch.empty(0, dtype=torch.int64)

    def draw(self) -> list[Tensor]:
        """Return the next batch of each array, ``[B, ...]``."""
        if len(self._waiting) < self.size:
            shuffle = torch.randperm(len(self.arrays[0]), generator=self._generator)
            self._waiting = torch.cat([self._waiting, shuffle])
        rows = self._waiting[: self.size].to(self.arrays[0].device)
        self._waiting = self._waiting[self.size :]
        return [array.index_select(0, rows) for array in self.arrays]

    def position(self) -> tuple[Tensor, Tensor]:
        """Return the position in the order, for `go_back`."""
        return self._generator.get_state(), self._waiting

    def go_back(self, position: tuple[Tensor, Tensor]) -> None:
        """Draw again from a position on."""
        state, self._waiting = position
        self._generator.set_state(state)


class StepRules(Protocol):
    """Additional rules of a training step of one or more batches (`TrainJob.accumulate`)."""

    @property
    def idle(self) -> bool:
        """True if steps are the same without these rules."""

    @property
    def kind(self) -> Hashable | None:
        """Equal keys for rules that treat the same tensors alike; None: unknown."""

    @property
    def reads(self) -> Sequence[Tensor]:
        """Tensors besides the model's that a step reads or changes in place, in a fixed order."""

    def draw(self) -> Sequence[Tensor]:
        """Draw the next step's extra samples, outside of recordings, if there is a kind."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The leaf tensors of the optimiser, in place of the model's parameters."""

    def before_step(self) -> None:
        """Called before the forward pass of every batch."""

    def penalty(self, batch: Sequence[Tensor], loss: Tensor) -> Tensor | None:
        """Return a scalar to add to the loss of a batch, `[B, ...]` of each array; None: nothing."""

    def after_backward(self) -> None:
        """Called once a step to change gradients, after averaging, clipping and correction."""

    def after_step(self) -> None:
        """Called after the optimiser has changed the parameters."""

    def after_epoch(self) -> None:
        """Called after every epoch."""

    def before_evaluation(self) -> None:
        """Called before the model predicts held-out samples between epochs."""


@dataclass(frozen=True, eq=False)
class AuxNetwork:
    """A network trained in a job's steps; its `name` is unique, `lr` None means the optimiser's."""

    name: str
    network: nn.Module
    lr: float | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """Its parameters that require a gradient."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]


@dataclass(frozen=True, eq=False)
class TrainJob:
    """Some epochs of training, with everything that an executor needs.

    `accumulate` below 1, or auxiliary networks in a job with a kind, raise a `ValueError`.

    Attributes:
        model: Trained in place, on the device of the arrays.
        arrays: Tensors ``[n, ...]`` of one device: inputs, labels, targets, other arguments of `loss`.
        loss: Called as ``loss(model, *batch, *constants)`` with a batch ``[B, ...]`` of each array, of
            `aux_batches` too; returns the mean over the batch.
        generator: CPU generator of the permutations; it moves on with the job.
        seed: Seed of the model's own draws (dropout).
        autocast: bfloat16 autocast on a GPU; ignored on a CPU.
        correction: Added to the clipped gradients: one tensor for each trainable parameter, in order.
        rules: Rules of every step, applied last to gradients and weights.
        accumulate: Batches a step, ≥ 1. The gradient is that of the mean over all their samples; only
            BatchNorm sees them apart. An epoch's last step may have fewer.
        lr_schedule: Learning rate over the steps of the job: constant, or half a cosine down to zero.
        early_stopping: Stops before the last epoch and restores the best weights. With it, a loss that is
            not finite ends the training without an error.
        scored_loss: Replaces `loss` in epochs that may be the last; returns the loss and the number of
            correctly classified samples. None: no counts.
        kind: Equal for jobs that may run together: they differ only in weights, arrays, constants,
            corrections, generators and seeds. None: unique.
        replayable: True if losses only compute, with the same results for the same tensors. Then steps may be
            recorded and replayed (see `fedkd.training.fast.replay`).
        aux_batches: Other samples: each batch gets one more batch of them. Rules and epochs ignore them.
        constants: Tensors after the batches, the same in every step.
        guessing: Number of samples of the most frequent class.
        optimizer_state: `FitResult.optimizer_state` of earlier jobs to continue exactly, at first empty.
            None: a fresh optimiser, whose state is dropped.
        aux_networks: Networks that are trained too; each is clipped alone. Such a job has no `kind`.
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
    aux_batches: AuxBatches | None = None
    aux_networks: Sequence[AuxNetwork] = ()

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be ≥ 1, got {self.accumulate}")
        if self.aux_networks and self.kind is not None:
            raise ValueError("a job with auxiliary networks must have no kind")

    def signature(self, tensors: Mapping[str, Tensor] | None = None) -> Hashable:
        """Return a key of a step's kernels, without batch sizes; `tensors` of the model, if known."""
        if tensors is None:
            tensors = dict([*self.model.named_parameters(), *self.model.named_buffers()])
        aux = () if self.aux_batches is None else self.aux_batches.arrays
        return (
            self.kind,
            repr(self.model),  # equal shapes do not imply equal layers
            *((name, t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for name, t in tensors.items()),
            *((array.shape[1:], array.dtype, array.device) for array in self.arrays),
            None if self.aux_batches is None else self.aux_batches.size,
            *((array.shape[1:], array.dtype, array.device) for array in aux),
            *((constant.shape, constant.dtype) for constant in self.constants),
            (self.optimizer, self.batch_size, self.autocast, self.correction is None),
            (self.optimizer_state is None, self.scored_loss is None),
        )

    def draw_aux(self) -> list[Tensor]:
        """Return the next auxiliary batch of each array, if there are any."""
        return [] if self.aux_batches is None else self.aux_batches.draw()


@dataclass(frozen=True)
class FitResult:
    """Result of a job.

    Attributes:
        loss: Mean loss over the samples of all epochs, each before its step; nan if there was no step.
        hits: Correct answers in the last epoch, each before its step; None if not counted.
        optimizer_state: State at the last weights, on the device, by names such as
            ``"exp_avg/head.weight"`` (see `fedkd.training.optimizer_state`). None if the job has none.
    """

    loss: float
    steps: int
    samples: int
    hits: TrainingHits | None = None
    optimizer_state: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)


def merge_results(results: Sequence[FitResult]) -> FitResult:
    """Return the result of several jobs of a model, one after another, without an optimiser state."""
    samples = sum(result.samples for result in results)
    total = 0.0
    for result in results:
        total += result.loss * result.samples if result.samples else 0.0
    hits = [result.hits for result in results if result.hits is not None]
    return FitResult(
        total / samples if samples else float("nan"),
        sum(result.steps for result in results),
        samples,
        hits[-1] if hits else None,
    )
