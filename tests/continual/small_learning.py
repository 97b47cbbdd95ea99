"""Tiny streams of tasks, and how a learner goes through one."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fedkd.continual.context import LearnerContext
from fedkd.continual.learning import TaskLearning
from fedkd.training.executor import run_training
from fedkd.training.job import FitResult, TrainJob
from fedkd.training.optimizer import OptimizerSpec

SGD = OptimizerSpec("sgd", 0.1)


def small_stream(tasks, *, samples=24, classes=2, shape=(6,), seed=0):
    """Return the samples ``[n, *shape]`` and labels ``[n]`` of every task."""
    g = torch.Generator().manual_seed(seed)
    stream = []
    for _ in range(tasks):
        y = torch.arange(samples) % classes
        centres = 2.0 * torch.randn(classes, *shape, generator=g)
        stream.append((centres[y] + torch.randn(samples, *shape, generator=g), y))
    return stream


def small_units(tasks, classes=2, *, shared=False):
    """Return the output units of every task: its own, or the same for all."""
    return [
        tuple(range(classes)) if shared else tuple(range(t * classes, (t + 1) * classes))
        for t in range(tasks)
    ]


def start(learner, network, stream, units=None, *, batch_size=8, seed=1, fast=True):
    """Return a learner at the start of a stream."""
    units = units or small_units(len(stream))
    outputs = 1 + max(unit for own in units for unit in own)
    context = LearnerContext(
        network, units, outputs, lambda t: stream[t], seed=seed, client=0, batch_size=batch_size
    )
    return TaskLearning(learner, context, fast=fast)


def train(
    learning, arrays, loss, *, epochs: range, task_epochs: int, after_epoch=None, **options
) -> FitResult:
    """Train for some of the present task's epochs."""
    job = TrainJob(learning.context.network, arrays, loss, epochs=len(epochs), **options)
    training = learning.fit(job, first_epoch=epochs.start, task_epochs=task_epochs, after_epoch=after_epoch)
    return run_training(training)


def guide(learning, arrays, loss, **options) -> FitResult:
    """Train on guidance."""
    return run_training(learning.distil(TrainJob(learning.context.network, arrays, loss, **options)))


def fit_task(learning, stream, task, *, epochs=2, task_epochs=None, optimizer=SGD, first=0, batch_size=8):
    """Train a task for epochs from `first` on, of `task_epochs` in all, without ending it."""
    learning.enter(task)
    return train(
        learning,
        stream[task],
        lambda model, x, y: F.cross_entropy(model(x), y),
        optimizer=optimizer,
        epochs=range(first, first + epochs),
        task_epochs=task_epochs or first + epochs,
        batch_size=batch_size,
        generator=torch.Generator().manual_seed(100 * task + first),
        seed=100 * task + first,
    )


def learn(learner, network, stream, units=None, *, epochs=2, optimizer=SGD, batch_size=8, seed=1):
    """Return a learner that has gone through a stream."""
    learning = start(learner, network, stream, units, batch_size=batch_size, seed=seed)
    for task in range(len(stream)):
        fit_task(learning, stream, task, epochs=epochs, optimizer=optimizer, batch_size=batch_size)
        learning.end()
    return learning
