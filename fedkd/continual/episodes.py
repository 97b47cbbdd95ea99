"""Episodic memory: a few samples of every task met, kept to be trained on or compared with later.

What is kept lies in ``context.memory``: samples as they are, labels and tasks int64. The samples of a task
are in order of precedence, so that a memory is made smaller by cutting off the last ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fedkd.continual.context import LearnerContext

SAMPLES = "episodes/samples"
LABELS = "episodes/labels"
TASKS = "episodes/tasks"
DRAWS = "episodes/draws"


class Episode(NamedTuple):
    """Remembered samples.

    Attributes:
        samples: ``[R, *input_shape]``.
        labels: ``[R]`` int64, positions among the units of each sample's task.
        tasks: ``[R]`` int64.
    """

    samples: Tensor
    labels: Tensor
    tasks: Tensor


def remember(context: LearnerContext, size: int) -> None:
    """Take samples of the present task into the memory, for which those of earlier tasks make room.

    Every task met has an equal share of the memory, and every class one of its task's; what one has no
    samples for goes to the others. A remainder goes to the first tasks and classes.

    Args:
        context: Its ``task`` is the one to remember.
        size: Samples of all tasks together.
    """
    x, y = context.samples()
    chosen = _precedence(y, context.generator("episodes"))[:size]
    new = torch.full((len(chosen),), context.task, dtype=torch.int64, device=context.device)
    parts = {SAMPLES: x[chosen], LABELS: y[chosen].long(), TASKS: new}
    if TASKS in context.memory:
        parts = {name: torch.cat([context.memory[name], values]) for name, values in parts.items()}
    # The first samples of all tasks are kept before any second one, and so on.
    kept = _by_rank(parts[TASKS])[:size].sort().values
    if len(kept):
        context.memory.update({name: values[kept] for name, values in parts.items()})
    context.memory.pop(DRAWS, None)


def draw(context: LearnerContext, size: int | None) -> Episode | None:
    """Return a fresh batch of remembered samples, all of them equally likely.

    Args:
        context: The number of draws is kept in its memory while a task lasts, so that a restored client draws
            what it would have drawn.
        size: R, none of them twice; None: the training batch size. If the memory holds no more, all of it.

    Returns:
        None where nothing is remembered, or one sample that BatchNorm would have no variance of.
    """
    if TASKS not in context.memory:
        return None
    count = len(context.memory[TASKS])
    number = min(count, size or context.batch_size)
    if number == 1 and any(isinstance(module, _BatchNorm) for module in context.network.modules()):
        return None
    # The counter stays on the CPU, where it is read in every step without waiting for another device.
    draws = int(context.memory.get(DRAWS, torch.zeros(1, dtype=torch.int64))[0])
    context.memory[DRAWS] = torch.tensor([draws + 1])
    order = torch.randperm(count, generator=context.generator(f"episodes-{draws}"))[:number]
    index = order.to(context.device)
    return Episode(*(context.memory[name].index_select(0, index) for name in (SAMPLES, LABELS, TASKS)))


def replay_loss(context: LearnerContext, episode: Episode) -> Tensor:
    """Return the mean cross entropy of remembered samples, each among its own task's units."""
    return context.cross_entropy(context.run(episode.samples), episode.labels, episode.tasks)


def _precedence(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random order ``[n]`` of samples whose every beginning has as equal classes as there can be."""
    shuffled = torch.randperm(len(labels), generator=generator).to(labels.device)
    return shuffled[_by_rank(labels[shuffled])]


def _by_rank(groups: Tensor) -> Tensor:
    """Return the order ``[n]`` that deals out the members of each group in turn: firsts, seconds, …"""
    together = groups.argsort(stable=True)
    _, sizes = torch.unique_consecutive(groups[together], return_counts=True)
    starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    rank = torch.arange(len(groups), device=groups.device) - starts
    return together[rank.argsort(stable=True)]
