"""A learner's private training: its own loss, on samples of its tasks."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedkd.clients.local.local_loss import LocalLoss
from fedkd.continual import Episode, OwnLoss, TaskLearning, TaskModel
from fedkd.training import EarlyStopping, TrainJob, majority_class_count


def task_batches(
    job: TrainJob,
    learning: TaskLearning,
    samples: Episode,
    held_out: Episode | None,
    patience: int,
    local: LocalLoss,
) -> TrainJob:
    """Return a job with the learner's loss instead of the cross entropy.

    FedProx's pull and rehearsed guidance of the `local` loss are added. Other terms of a strategy are
    refused: they concern the present task's classes only. Training stops early on `held_out` samples, if any.
    """
    learner, context = learning.learner, learning.context
    proximal, rehearsed = local.proximal, local.rehearsed

    def criterion(outputs: Tensor, labels: Tensor, of_task: Tensor) -> Tensor:
        if isinstance(learner, OwnLoss):
            return learner.loss(context, outputs, labels, of_task)
        return context.cross_entropy(outputs, labels, of_task)

    def loss(model: TaskModel, inputs: Tensor, labels: Tensor, of_task: Tensor, *others: Tensor) -> Tensor:
        # First, so that the model keeps the outputs of private samples.
        extra = None if rehearsed is None else rehearsed(model, *others)
        value = criterion(model.outputs(inputs), labels, of_task)
        if extra is not None:
            value = value + extra
        return value if proximal is None else value + proximal(model)

    def scored_loss(
        model: TaskModel, inputs: Tensor, labels: Tensor, of_task: Tensor, *others: Tensor
    ) -> tuple[Tensor, Tensor]:
        value = loss(model, inputs, labels, of_task, *others)
        return value, context.correct(model.outputs(inputs), labels, of_task)

    stopping = None
    if held_out is not None and len(held_out.labels):
        stopping = EarlyStopping(held_out, criterion, patience, outputs=TaskModel.outputs)
    labels, tasks = samples.labels, samples.tasks
    return replace(
        job,
        arrays=samples,
        loss=loss,
        scored_loss=scored_loss,
        guessing=sum(majority_class_count(labels[tasks == task].cpu()) for task in tasks.unique()),
        early_stopping=stopping,
        kind=None,
        replayable=False,
        constants=(),
    )


def of_task(task: int, x: Tensor, y: Tensor) -> Episode:
    """Return samples and labels with their task."""
    return Episode(x, y, torch.full((len(y),), task, device=y.device))


def some(samples: Episode, rows: Tensor) -> Episode:
    """Return some of them, by their indices ``[n]``."""
    return Episode(*(values[rows] for values in samples))


def joined(parts: Sequence[Episode]) -> Episode:
    return Episode(*map(torch.cat, zip(*parts, strict=True)))
