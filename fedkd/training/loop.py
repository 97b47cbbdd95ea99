"""The training loop: one job, one step after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedkd.errors import TrainingDiverged
from fedkd.randomness import seeded_torch
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.optimizer import make_optimizer


def fit(job: TrainJob) -> FitResult:
    """Train the job's model in place and leave it in training mode.

    Each epoch visits the samples in a fresh permutation. The last batch may be smaller; a last batch of one
    sample is left out where the model has BatchNorm, which has no variance to divide by. The optimiser starts
    fresh. The same job gives the same weights to the last bit, on one device with one number of threads.

    Raises:
        TrainingDiverged: A loss, or a weight at the end, is not a finite number.
    """
    model, arrays, optimizer, rules = job.model, job.arrays, job.optimizer, job.rules
    device = arrays[0].device
    starts = batch_starts(model, len(arrays[0]), job.batch_size)
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parameters = own if rules is None else list(rules.parameters)
    stepper = make_optimizer(optimizer, parameters)
    precision = (
        torch.autocast("cuda", torch.bfloat16) if job.autocast and device.type == "cuda" else nullcontext()
    )
    total, steps, samples = 0.0, 0, 0
    model.train()
    with seeded_torch(job.seed):
        for epoch in range(1, job.epochs + 1):
            order = torch.randperm(len(arrays[0]), generator=job.generator).to(device)
            losses = []
            sizes = []
            for start in starts:
                index = order[start : start + job.batch_size]
                batch = [array.index_select(0, index) for array in arrays]
                if rules is not None:
                    rules.before_step()
                with precision:
                    value = job.loss(model, *batch)
                    penalty = None if rules is None else rules.penalty(batch[0], value)
                stepper.zero_grad(set_to_none=True)
                (value if penalty is None else value + penalty).backward()
                if optimizer.clip_norm is not None:
                    nn.utils.clip_grad_norm_(parameters, optimizer.clip_norm)
                if job.correction is not None:
                    _add_to_gradients(own, job.correction)
                if rules is not None:
                    rules.after_backward()
                _lay_out_gradients(parameters)
                stepper.step()
                if rules is not None:
                    rules.after_step()
                losses.append(value.detach())
                sizes.append(len(index))
            # The losses leave the device once an epoch: asking after each step would make a GPU wait.
            epoch_loss = _sum_over_samples(losses, sizes)
            if not math.isfinite(epoch_loss):
                raise _diverged(f"training loss became {epoch_loss} in epoch {epoch}")
            total += epoch_loss
            steps += len(sizes)
            samples += sum(sizes)
            if rules is not None:
                rules.after_epoch()
    stepper.zero_grad(set_to_none=True)
    if steps and not _all_finite(parameters):
        raise _diverged(f"weights stopped being finite in epoch {job.epochs}")
    return FitResult(total / samples if samples else float("nan"), steps, samples)


def batch_starts(model: nn.Module, samples: int, batch_size: int) -> range:
    """Return where the batches of an epoch start; see `fit` for the one that is left out."""
    starts = range(0, samples, batch_size)
    alone = samples % batch_size == 1 and len(starts) > 1 and batch_size > 1
    if alone and any(isinstance(module, _BatchNorm) for module in model.modules()):
        return starts[:-1]
    return starts


def _add_to_gradients(parameters: Sequence[Tensor], correction: Sequence[Tensor]) -> None:
    for parameter, extra in zip(parameters, correction, strict=True):
        if parameter.grad is None:  # the loss does not depend on it
            parameter.grad = extra.clone()
        else:
            parameter.grad.add_(extra)


def _lay_out_gradients(parameters: Sequence[Tensor]) -> None:
    """Let every gradient lie in memory as its parameter does.

    Fused optimisers pair elements by where they lie, whatever the strides say. Autograd's own gradients are
    laid out like the weights, channels last; what became of them elsewhere may not be.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


def _sum_over_samples(losses: list[Tensor], sizes: list[int]) -> float:
    """Return ``Σ_b size_b · loss_b`` in float64, added in batch order."""
    total = 0.0
    for value, size in zip(torch.stack(losses).tolist() if losses else [], sizes, strict=True):
        total += value * size  # sum() compensates for rounding on some Python versions only
    return total


def _all_finite(parameters: Sequence[Tensor]) -> bool:
    return bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all())


def _diverged(what: str) -> TrainingDiverged:
    return TrainingDiverged(f"{what}; a lower training.lr may help")
