"""GDumb: fill a memory greedily, and train on it alone, from scratch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedkd.continual import episodes
from fedkd.continual.context import LearnerContext
from fedkd.continual.episodes import Episode
from fedkd.continual.single import Single
from fedkd.hyperparameters import STRICT


@dataclass(frozen=True, config=STRICT)
class GDumb(Single):
    """Keep a few samples of every class met, and learn from nothing else, from the initial weights on.

    The *sampler* sees the samples of the stream one after the other, each once. Of the k places of the
    memory a class may have k / (classes so far); a sample of a new class, or of one that has fewer, is taken
    in, and where there is no room a random one of the largest class has to go. The *learner* is whatever
    trains a fresh network on what the memory holds when somebody asks.

    A question is asked here whenever the client is evaluated or tells what it knows, which is in every
    round. So when a task begins, all of its samples pass the sampler, in random order, the network goes back
    to its initial weights, and the rounds of the task train it on the memory and on nothing else. What it
    knew before is lost, as it is in the paper: how a network does says what the memory is worth, and a
    learner that is no better than this one has learned nothing from the stream. Give the task epochs enough
    for a small memory: an epoch is a pass over the memory, where the authors make 256.

    A class is one of a task's: where tasks share classes, they share the memory out anew.
    """

    name: ClassVar[str] = "gdumb"
    paper: ClassVar[str] = (
        "Prabhu et al., GDumb: A Simple Approach that Questions Our Progress in Continual Learning, ECCV 2020"
    )
    remembers_only: ClassVar[bool] = True

    memory_size: Annotated[int, Field(ge=1)] = 1000
    """k: samples kept of all tasks together, and all that is ever learned from."""

    def begin_task(self, context: LearnerContext) -> None:
        """Pass the task's samples by the sampler, and go back to the initial weights."""
        super().begin_task(context)
        x, y = context.samples()
        generator = context.generator("gdumb")
        order = torch.randperm(len(y), generator=generator).to(y.device)
        coming = Episode(x, y.long(), torch.full((len(y),), context.task, device=context.device))
        held = episodes.everything(context)
        every = coming if held is None else Episode(*map(torch.cat, zip(held, coming, strict=True)))
        first = len(every.labels) - len(y)
        classes = list(zip(every.tasks.tolist(), every.labels.tolist(), strict=True))
        queue = [*range(first), *(first + order).tolist()]
        kept = greedily_balanced([classes[n] for n in queue], first, self.memory_size, generator)
        episodes.replace(context, every, torch.tensor([queue[n] for n in kept], device=context.device))

    def training_tasks(self, context: LearnerContext) -> Sequence[int]:
        """Return no task: only what is remembered is trained on."""
        return ()

    def rehearsed(self, context: LearnerContext) -> Episode | None:
        """Return all that is remembered."""
        return episodes.everything(context)


def greedily_balanced(
    classes: Sequence[Hashable], held: int, size: int, generator: torch.Generator
) -> list[int]:
    """Return which samples a greedy balancing sampler holds in the end, ascending.

    Args:
        classes: Of every sample, in the order in which they come.
        held: How many of them, the first ones, it holds already.
        size: k, the number that it can hold.
        generator: Says who has to go.
    """
    members: dict[Hashable, list[int]] = {}
    count = held
    for n, kind in enumerate(classes[:held]):
        members.setdefault(kind, []).append(n)
    for n, kind in enumerate(classes[held:], start=held):
        if kind in members and len(members[kind]) >= size / len(members):
            continue
        if count >= size:
            largest = max(members.values(), key=len)
            del largest[int(torch.randint(len(largest), (), generator=generator))]
        else:
            count += 1
        members.setdefault(kind, []).append(n)
    return sorted(n for own in members.values() for n in own)
