"""Episodic memory: a few samples of every task, kept for replay.

A task's samples are in order of precedence, so a memory shrinks by dropping the last ones.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.state import LearnerState, TableField, TensorTable
from fedkd.training import BatchNorm

EPISODES = "episodes"
DRAWS = "draws"


class Episode(NamedTuple):
    """Remembered samples ``[R, *input_shape]``, labels among their task's units and tasks, ``[R]`` int64."""

    samples: Tensor
    labels: Tensor
    tasks: Tensor


class BufferState(LearnerState):
    """The buffer of a learner: samples, labels and tasks as of `Episode`."""

    episodes = TableField()


def remember(
    context: LearnerContext,
    size: int,
    order: Tensor | None = None,
    equal: Literal["tasks", "classes"] = "tasks",
) -> None:
    """Store samples of the present task; earlier tasks make room.

    Either tasks have equal shares of the memory and classes equal shares of their task's, or all classes have
    equal shares. Unused shares go to the others, a remainder to the first ones.

    Args:
        size: Samples of all tasks together.
        order: Of precedence of the task's samples, `[n]`; None: a random one in which classes take turns.
        equal: Unit that has equal shares.
    """
    x, y = context.samples()
    chosen = (precedence(y, context.generator("episodes")) if order is None else order)[:size]
    new = torch.full((len(chosen),), context.task, dtype=torch.int64, device=context.device)
    samples, held = Episode(x[chosen], y[chosen].long(), new), everything(context)
    if held is not None:
        samples = Episode(*map(torch.cat, zip(held, samples, strict=True)))
    groups = samples.tasks
    if equal == "classes":
        pairs = torch.stack([groups, samples.labels], dim=1)
        groups = pairs.unique(dim=0, return_inverse=True)[1]
    # The first samples of all are kept before any second one, and so on.
    replace(context, samples, by_rank(groups)[:size].sort().values)


def replace(context: LearnerContext, samples: Episode, rows: Tensor) -> None:
    """Replace the memory by rows ``[R]`` of samples; without rows it stays."""
    buffer = BufferState(context).episodes
    if len(rows):
        buffer.put({name: values[rows] for name, values in samples._asdict().items()})
    buffer.pop(DRAWS, None)


def everything(context: LearnerContext) -> Episode | None:
    """Return the whole memory; None: it is empty."""
    buffer = BufferState(context).episodes
    return Episode(*(buffer[name] for name in Episode._fields)) if "tasks" in buffer else None


def draw(context: LearnerContext, size: int | None) -> Episode | None:
    """Return a batch of stored samples, drawn by `fresh_rows`; None: nothing is drawn."""
    held = everything(context)
    rows = None if held is None else fresh_rows(context, EPISODES, len(held.tasks), size)
    if held is None or rows is None:
        return None
    return Episode(*(values.index_select(0, rows) for values in held))


def drawn(context: LearnerContext, size: int | None) -> Episode | None:
    """Return the samples drawn ahead for the present step, or `draw` now."""
    if context.drawn is None:
        return draw(context, size)
    ahead, context.drawn = context.drawn, None
    return Episode(*ahead) if ahead else None


def fresh_rows(context: LearnerContext, owner: str, count: int, size: int | None) -> Tensor | None:
    """Draw rows ``[R]`` of a memory of `count` for a step, none twice.

    The number of draws is kept in memory as ``{owner}/draws``, so a restored client draws the same rows.
    `size` is R, at most all rows; None: the training batch size. Returns None for no row, or for a single row
    with BatchNorm, which needs a variance.
    """
    number = min(count, size or context.batch_size)
    alone = number == 1 and any(isinstance(module, BatchNorm) for module in context.network.modules())
    if number == 0 or alone:
        return None
    draws = counted(context, owner, 1)
    order = torch.randperm(count, generator=context.generator(f"{owner}-{draws}"))[:number]
    return order.to(context.device)


def counted(context: LearnerContext, owner: str, more: int, name: str = DRAWS) -> int:
    """Return an owner's counter in the memory, and increase it by `more`."""
    # It stays on the CPU, where every step reads it without waiting for another device.
    counter = TensorTable(context.memory, owner).setdefault(name, torch.zeros(1, dtype=torch.int64))
    before = int(counter)
    counter += more
    return before


def replay_loss(context: LearnerContext, episode: Episode) -> Tensor:
    """Return the mean cross entropy of remembered samples, each among its own task's units."""
    return context.cross_entropy(context.run(episode.samples), episode.labels, episode.tasks)


def precedence(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random order ``[n]`` of samples with balanced classes in every prefix."""
    shuffled = torch.randperm(len(labels), generator=generator).to(labels.device)
    return shuffled[by_rank(labels[shuffled])]


def by_rank(groups: Tensor) -> Tensor:
    """Return the order ``[n]`` that alternates groups: all firsts, then all seconds."""
    together = groups.argsort(stable=True)
    _, sizes = torch.unique_consecutive(groups[together], return_counts=True)
    starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    rank = torch.arange(len(groups), device=groups.device) - starts
    return together[rank.argsort(stable=True)]
