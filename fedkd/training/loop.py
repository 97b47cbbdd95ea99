"""The training loop: one job, one step after the other."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fedkd.errors import TrainingDiverged
from fedkd.randomness import seeded_torch
from fedkd.training.compat import BatchNorm
from fedkd.training.early_stopping import BestWeights
from fedkd.training.fast.replay import Replays
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.majority_guessing import TrainingHits
from fedkd.training.optimizer import make_optimizer, step_schedule
from fedkd.training.optimizer_state import aux_names, load_optimizer_state, names_of, optimizer_state
from fedkd.training.step import Stepper


def fit(job: TrainJob, replays: Replays | None = None) -> FitResult:  # noqa: C901  one loop, read from top to bottom
    """Train the job's model in place and leave it in training mode.

    Each epoch visits the samples in a fresh permutation. The last batch may be smaller; models with BatchNorm
    skip a last batch of one sample, which has no variance. The same job gives the same bits on the same
    device and number of threads. `TrainingDiverged` is raised if a loss, or a weight at the end, is not
    finite.
    """
    model, rules = job.model, job.rules
    networks = [model, *(aux.network for aux in job.aux_networks)]
    samples = len(job.arrays[0])
    starts = batch_starts(networks, samples, job.batch_size)
    sizes = [min(job.batch_size, samples - start) for start in starts]
    steps = math.ceil(len(sizes) / job.accumulate)
    parameters: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if rules is not None:
        parameters = list(rules.parameters)
    beside = [(aux.parameters, aux.lr) for aux in job.aux_networks]
    optimizer = make_optimizer(job.optimizer, parameters, beside)
    clipped = [parameters, *(own for own, _ in beside)]
    state = job.optimizer_state
    named: dict[str, Tensor] = {}
    if state is not None:
        named = names_of(parameters, model.named_parameters()) | aux_names(job)
        load_optimizer_state(optimizer, job.optimizer, named, state)
    parameters = [parameter for own in clipped for parameter in own]
    schedule = step_schedule(optimizer, job.lr_schedule, job.epochs * steps)
    stepper = Stepper(job, parameters, optimizer, replays, clipped)
    best = _begin_early_stopping(job, parameters)
    total, taken, seen = 0.0, 0, 0
    hits: TrainingHits | None = None
    for network in networks:
        network.train()
    with seeded_torch(job.seed):
        for epoch in range(1, job.epochs + 1):
            stepper.begin_epoch()
            order = torch.randperm(samples, generator=job.generator).to(job.arrays[0].device)
            batches = order.split(job.batch_size)[: len(sizes)]
            losses: list[Tensor] = []
            right: list[Tensor] = []
            # With early stopping any epoch may be the last.
            counts = job.scored_loss is not None and (best is not None or epoch == job.epochs)
            for first in range(0, len(sizes), job.accumulate):
                step = slice(first, first + job.accumulate)
                found, correct = stepper.take(batches[step], sizes[step], counts=counts)
                losses += found
                right += correct
                if schedule is not None:
                    schedule.step()
            # Losses leave the device once an epoch, because reading each would make a GPU wait.
            epoch_loss = sum_over_samples(losses, sizes)
            total, taken, seen = total + epoch_loss, taken + steps, seen + sum(sizes)
            if right:
                hits = TrainingHits(int(torch.stack(right).sum()), sum(sizes), job.guessing)
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
    for parameter in parameters:
        parameter.grad = None
    if best is not None:
        best.restore()
    elif state is not None:
        state = optimizer_state(optimizer, named)
    if taken and not all_finite(parameters):
        raise diverged(f"weights stopped being finite in epoch {job.epochs}")
    return FitResult(total / seen if seen else float("nan"), taken, seen, hits, state)


def batch_starts(networks: Iterable[nn.Module], samples: int, batch_size: int) -> range:
    """Return the starts of an epoch's batches (see `fit` for the skipped one)."""
    starts = range(0, samples, batch_size)
    alone = samples % batch_size == 1 and len(starts) > 1 and batch_size > 1
    if alone and any(isinstance(module, BatchNorm) for network in networks for module in network.modules()):
        return starts[:-1]
    return starts


def _begin_early_stopping(job: TrainJob, parameters: Sequence[Tensor]) -> BestWeights | None:
    if job.early_stopping is None:
        return None
    if job.rules is not None:
        job.rules.before_evaluation()
    buffers = [buffer for aux in job.aux_networks for buffer in aux.network.buffers()]
    return BestWeights(job.early_stopping, job.model, [*parameters, *buffers])


def sum_over_samples(losses: list[Tensor], sizes: list[int]) -> float:
    """Return ``Σ_b size_b · loss_b`` in float64, added in batch order."""
    total = 0.0
    for value, size in zip(torch.stack(losses).tolist() if losses else [], sizes, strict=True):
        total += value * size  # sum() compensates for rounding on some Python versions only
    return total


def all_finite(parameters: Sequence[Tensor]) -> bool:
    with torch.no_grad():
        # A sum is finite only if its terms are; it is ten times faster than a check of each number.
        if torch.stack([parameter.sum() for parameter in parameters]).isfinite().all():
            return True
        return bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all())


def diverged(what: str) -> TrainingDiverged:
    return TrainingDiverged(f"{what}; a lower training.lr may help")
