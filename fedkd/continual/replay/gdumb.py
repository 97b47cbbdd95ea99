"""GDumb: fill a memory greedily, and train on it alone, from scratch."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.continual.baselines.baselines import Single
from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Batch, LearnerTraits, Step
from fedkd.continual.mixins import WEIGHTS, Phases
from fedkd.continual.replay import buffer as episodes
from fedkd.continual.replay.buffer import Episode
from fedkd.errors import UserError
from fedkd.plugins import hyperparameters
from fedkd.training import OptimizerSpec

EPOCH = "epoch "
"""Prefix of the phase of one epoch, which has its own learning rate."""
MOMENTUM, WEIGHT_DECAY, CLIP_NORM = 0.9, 1e-6, 10.0
"""Of the authors' SGD."""


@hyperparameters
class GDumb(Phases, Single):
    """Store a few samples per class, and train on them alone from the initial weights.

    The *sampler* sees every sample of the stream once. A class may have k / (classes so far) of the k places.
    A sample of a smaller class is stored, and replaces a random one of the largest class if the memory is
    full. The *learner* trains a fresh network on the memory on request.

    A client is evaluated in every round. So at the start of a task its samples pass the sampler in random
    order, and the network returns to its initial weights. The task's rounds then train it on the memory
    alone. Its accuracy shows the value of the memory. Allow enough epochs for a small memory: an epoch is one
    pass, and the authors use 128 or 256.

    The learning rate of an epoch falls along a cosine that begins anew after 1, 2, 4, 8, … epochs (SGDR;
    Loshchilov & Hutter, ICLR 2017), with SGD of momentum 0.9. Momentum begins anew with every epoch, unless
    the scenario keeps the state of optimisers. Guidance is distilled with the same optimiser.

    *CutMix* (Yun et al., ICCV 2019) pastes a rectangle of another image of the batch, of share 1 − λ::

        loss = λ · CE(z, y) + (1 − λ) · CE(z, y of the other image)         λ uniform in [0, 1]

    Classes are counted per task, also if tasks share them.
    """

    name: ClassVar[str] = "gdumb"
    paper: ClassVar[str] = (
        "Prabhu et al., GDumb: A Simple Approach that Questions Our Progress in Continual Learning, ECCV 2020"
    )
    source_note: ClassVar[str] = "evaluated in every round; momentum restarts with every epoch"
    traits: ClassVar[LearnerTraits] = replace(Single.traits, replays_only=True)

    memory_size: Annotated[int, Field(ge=1)] = 1000
    """k: samples kept of all tasks together, the only training samples."""
    schedule: Literal["warm_restarts", "training"] = "warm_restarts"
    """Training of the network: the authors' SGD with `warm_restarts`, or the scenario's `training`. The
    former suits batches of 16 and at least 31 epochs a task, after which a cosine ends."""
    max_lr: Annotated[float, Field(gt=0)] = 0.05
    """Learning rate after a restart; a tenth of it in the first epoch."""
    min_lr: Annotated[float, Field(ge=0)] = 5e-4
    """Learning rate that the cosine falls to."""
    cutmix: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a batch is mixed. 0.5 in the authors' runs on photographs; on MNIST they mix none. A
    mixed batch costs a second pass."""

    def prepare(self, context: LearnerContext) -> None:
        """Store the initial weights; refuse CutMix on samples other than images."""
        super().prepare(context)
        if self.cutmix > 0.0 and context.samples(0)[0].dim() != 4:
            raise UserError("must be 0, because samples are not images", key="continual.cutmix")

    def begin_task(self, context: LearnerContext) -> None:
        """Pass the task's samples to the sampler, and restore the initial weights."""
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

    def phase_of(self, epoch: int, epochs: int) -> str:
        """Return a phase per epoch, since each has its own learning rate."""
        return WEIGHTS if self.schedule == "training" else f"{EPOCH}{epoch}"

    def optimizer(self, context: LearnerContext, spec: OptimizerSpec) -> OptimizerSpec:
        """Return the authors' SGD with the learning rate of the epoch."""
        if self.schedule == "training":
            return spec
        lr = restarted(int(context.phase.removeprefix(EPOCH)), self.max_lr, self.min_lr)
        return replace(
            spec, name="sgd", lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM
        )

    def penalty(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return the correction to a mixed batch's loss, with the probability `cutmix`."""
        if self.cutmix == 0.0 or step.labels is None or step.tasks is None:
            return None
        draw = episodes.counted(context, "cutmix", 1)
        generator = context.generator(f"cutmix-{draw}")
        if float(torch.rand((), generator=generator)) >= self.cutmix:
            return None
        mixed, order, share = pasted(step.inputs, generator)
        outputs = step.model.outputs(mixed)
        own = context.cross_entropy(outputs, step.labels, step.tasks)
        other = context.cross_entropy(outputs, step.labels[order], step.tasks[order])
        return share * own + (1.0 - share) * other - step.loss

    def batch(self, context: LearnerContext) -> Batch:
        return Batch((), episodes.everything(context))


def greedily_balanced(
    classes: Sequence[Hashable], held: int, size: int, generator: torch.Generator
) -> list[int]:
    """Return the samples that a greedy balancing sampler of size k holds at the end, ascending.

    `classes` are in the samples' order; the sampler already holds the first `held`.
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


def restarted(epoch: int, highest: float, lowest: float) -> float:
    """Return the learning rate of an epoch of a cosine that restarts after 1, 2, 4, 8, … epochs.

    The very first epoch warms up at a tenth of the highest rate.
    """
    if epoch == 0:
        return 0.1 * highest
    length = 1 << (epoch.bit_length() - 1)
    return lowest + (highest - lowest) * 0.5 * (1.0 + math.cos(math.pi * (epoch - length) / length))


def pasted(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Return images ``[B, C, H, W]``, each with a rectangle from another of the batch (CutMix).

    Also return the rectangles' sources ``[B]``, and the share λ of an image's own pixels.
    """
    count, (height, width) = len(images), images.shape[2:]
    size, down, across = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    order = torch.randperm(count, generator=generator).to(images.device)
    half_height, half_width = int(height * math.sqrt(size)) // 2, int(width * math.sqrt(size)) // 2
    row, column = int(down * height), int(across * width)
    rows = slice(max(row - half_height, 0), min(row + half_height, height))
    columns = slice(max(column - half_width, 0), min(column + half_width, width))
    mixed = images.clone()
    mixed[:, :, rows, columns] = images[order][:, :, rows, columns]
    cut = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, order, 1.0 - cut / (height * width)
