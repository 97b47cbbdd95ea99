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
from fedkd.training.chance import Hits
from fedkd.training.early_stopping import BestWeights
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.optimizer import make_optimizer, step_schedule
from fedkd.training.optimizer_state import load_optimizer_state, names_of, optimizer_state


def fit(job: TrainJob) -> FitResult:
    """Train the job's model in place and leave it in training mode.

    Each epoch visits the samples in a fresh permutation. The last batch may be smaller; a last batch of one
    sample is left out where the model has BatchNorm, which has no variance to divide by. The same job gives
    the same weights to the last bit, on one device with one number of threads.

    Raises:
        TrainingDiverged: A loss, or a weight at the end, is not a finite number.
    """
    model, rules = job.model, job.rules
    starts = batch_starts(model, len(job.arrays[0]), job.batch_size)
    steps = [starts[first : first + job.accumulate] for first in range(0, len(starts), job.accumulate)]
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parameters = own if rules is None else list(rules.parameters)
    optimizer = make_optimizer(job.optimizer, parameters)
    named = names_of(parameters, model)
    state = job.optimizer_state
    if state is not None:
        load_optimizer_state(optimizer, job.optimizer, named, state)
    schedule = step_schedule(optimizer, job.lr_schedule, job.epochs * len(steps))
    best = _begin_early_stopping(job, parameters)
    total, taken, seen = 0.0, 0, 0
    hits: Hits | None = None
    model.train()
    with seeded_torch(job.seed):
        for epoch in range(1, job.epochs + 1):
            order = torch.randperm(len(job.arrays[0]), generator=job.generator).to(job.arrays[0].device)
            losses: list[Tensor] = []
            sizes: list[int] = []
            right: list[Tensor] = []
            # Any epoch may turn out to be the last where training may stop early.
            counts = job.scored_loss is not None and (best is not None or epoch == job.epochs)
            for step in steps:
                batches = [order[start : start + job.batch_size] for start in step]
                optimizer.zero_grad(set_to_none=True)
                losses += _accumulate_gradients(job, batches, right if counts else None)
                sizes += [len(batch) for batch in batches]
                if job.optimizer.clip_norm is not None:
                    nn.utils.clip_grad_norm_(parameters, job.optimizer.clip_norm)
                if job.correction is not None:
                    add_to_gradients(own, job.correction)
                if rules is not None:
                    rules.after_backward()
                _lay_out_gradients(parameters)
                optimizer.step()
                if schedule is not None:
                    schedule.step()
                if rules is not None:
                    rules.after_step()
            # The losses leave the device once an epoch: asking after each step would make a GPU wait.
            epoch_loss = sum_over_samples(losses, sizes)
            total, taken, seen = total + epoch_loss, taken + len(steps), seen + sum(sizes)
            if right:
                hits = Hits(int(torch.stack(right).sum()), sum(sizes), job.guessing)
            if not math.isfinite(epoch_loss):
                if best is not None:
                    break
                raise diverged(f"training loss became {epoch_loss} in epoch {epoch}")
            if rules is not None:
                rules.after_epoch()
            if best is not None:
                if rules is not None:
                    rules.before_evaluation()
                if best.look() and state is not None:
                    state = {name: value.clone() for name, value in optimizer_state(optimizer, named).items()}
                if best.exhausted:
                    break
    optimizer.zero_grad(set_to_none=True)
    if best is not None:
        best.restore()
    elif state is not None:
        state = optimizer_state(optimizer, named)
    if taken and not all_finite(parameters):
        raise diverged(f"weights stopped being finite in epoch {job.epochs}")
    return FitResult(total / seen if seen else float("nan"), taken, seen, hits, state)


def batch_starts(model: nn.Module, samples: int, batch_size: int) -> range:
    """Return where the batches of an epoch start; see `fit` for the one that is left out."""
    starts = range(0, samples, batch_size)
    alone = samples % batch_size == 1 and len(starts) > 1 and batch_size > 1
    if alone and any(isinstance(module, _BatchNorm) for module in model.modules()):
        return starts[:-1]
    return starts


def _begin_early_stopping(job: TrainJob, parameters: Sequence[Tensor]) -> BestWeights | None:
    if job.early_stopping is None:
        return None
    if job.rules is not None:
        job.rules.before_evaluation()
    return BestWeights(job.early_stopping, job.model, parameters)


def _accumulate_gradients(
    job: TrainJob, batches: Sequence[Tensor], right: list[Tensor] | None
) -> list[Tensor]:
    """Leave the gradients of the mean loss over all samples of some batches, and return each batch's loss.

    Args:
        job: Whose model's gradients are None.
        batches: Indices of samples ``[B]``.
        right: Takes how many samples of each batch were classified correctly; None: nobody counts.
    """
    autocast = job.autocast and job.arrays[0].device.type == "cuda"
    losses = []
    samples = sum(len(index) for index in batches)
    for index in batches:
        batch = [array.index_select(0, index) for array in job.arrays]
        if job.rules is not None:
            job.rules.before_step()
        with torch.autocast("cuda", torch.bfloat16) if autocast else nullcontext():
            if right is None or job.scored_loss is None:
                value = job.loss(job.model, *batch, *job.constants)
            else:
                value, correct = job.scored_loss(job.model, *batch, *job.constants)
                right.append(correct)
            penalty = None if job.rules is None else job.rules.penalty(batch, value)
        whole = value if penalty is None else value + penalty
        (whole if len(batches) == 1 else whole * (len(index) / samples)).backward()
        losses.append(value.detach())
    return losses


def add_to_gradients(parameters: Sequence[Tensor], correction: Sequence[Tensor]) -> None:
    """Add one tensor to the gradient of each parameter."""
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


def sum_over_samples(losses: list[Tensor], sizes: list[int]) -> float:
    """Return ``Σ_b size_b · loss_b`` in float64, added in batch order."""
    total = 0.0
    for value, size in zip(torch.stack(losses).tolist() if losses else [], sizes, strict=True):
        total += value * size  # sum() compensates for rounding on some Python versions only
    return total


def all_finite(parameters: Sequence[Tensor]) -> bool:
    """Return whether all parameters are finite numbers."""
    return bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all())


def diverged(what: str) -> TrainingDiverged:
    """Return the error of a training that diverged, and what may help."""
    return TrainingDiverged(f"{what}; a lower training.lr may help")
