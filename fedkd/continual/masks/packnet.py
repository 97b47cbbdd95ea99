"""PackNet: each task owns weights, taken from those still free."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedkd.continual.context import LearnerContext
from fedkd.continual.layers import find_layers
from fedkd.continual.learner import Learner, LearnerTraits, Tensors
from fedkd.continual.mixins import Phases, TaskParameters
from fedkd.continual.state import LearnerState, TableField, Value
from fedkd.errors import UserError
from fedkd.plugins import hyperparameters

TRAIN = "train"
RETRAIN = "retrain"
FREE = 0
"""Owner of weights that no task has; those of task t belong to t + 1."""


class PackState(LearnerState):
    """PackNet's memory."""

    owners = TableField()
    """The task of every weight plus 1, by weight."""
    scales = Value()
    """Standard deviation of each weight's initial values."""
    vectors = TableField()
    """Biases and the like, by task and parameter."""


@hyperparameters
class PackNet(Phases, TaskParameters, Learner):
    """Train the free weights, keep the largest for the task, and retrain those.

    Free weights restart at random in each further task, with the spread of the initial weights. In the paper
    they restart at 0. With owner the task of each weight, layer by layer::

        train:    all free weights learn, those of earlier tasks are used but frozen
        prune:    the task becomes the owner of the largest free |w|; the others are 0
        retrain:  the weights just taken learn, to make up for the loss of the others
        task j:   W ⊙ (owner ≤ j), from then on

    So a task's logits stay the same bit for bit. Prediction needs the task.

    Tasks that share a head unit share out its weights. Each task has its own running statistics of
    normalisation layers. Owners take one byte per weight, two above 255 tasks. A task of one epoch is pruned
    after it, without retraining.
    """

    name: ClassVar[str] = "packnet"
    paper: ClassVar[str] = (
        "Mallya and Lazebnik, PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning,"
        " CVPR 2018, arXiv 1711.05769"
    )
    source_note: ClassVar[str] = "free weights restart at random, where the paper's restart at 0"
    traits: ClassVar[LearnerTraits] = LearnerTraits(
        isolates=True, projects_updates=True, task_statistics=True
    )

    keep: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of a layer's free weights that a task takes, 0.25 to 0.5 in the paper; absent: 1 / (tasks left),
    an equal share for every task. A fixed share favours early tasks, which suits streams whose later tasks
    build on them."""
    retrain_share: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of a task's epochs that retrains after pruning: at least one epoch, and all but one at most, so
    a task should have two or more. Raise it if little is kept; 0 prunes at the end and never retrains."""
    biases: Literal["task", "first"] = "task"
    """Handling of biases and normalisation scales, which are never pruned. With `task` each task has its own
    copy, for a few bytes; with `first` they freeze after the first task, as in the paper."""

    def check(self, network: nn.Module) -> None:
        """Refuse a network without a linear or convolutional layer."""
        if not find_layers(network):
            raise UserError(
                "'packnet' needs linear or convolutional layers, but the model has none",
                key="continual.learner",
            )

    def prepare(self, context: LearnerContext) -> None:
        kind = torch.uint8 if context.tasks <= torch.iinfo(torch.uint8).max else torch.int16
        state, scales = PackState(context), []
        for name, weight in _weights(context):
            state.owners[name] = torch.full(weight.shape, FREE, dtype=kind, device=context.device)
            scales.append(weight.detach().std(correction=0))
        state.scales = torch.stack(scales)

    def begin_task(self, context: LearnerContext) -> None:
        """Draw new values for free weights that earlier tasks left at zero."""
        if context.task == 0:
            return
        generator, scales = context.generator("free-weights"), PackState(context).scales
        assert scales is not None
        with torch.no_grad():
            for (name, weight), scale in zip(_weights(context), scales, strict=True):
                fresh = torch.randn(weight.shape, generator=generator).to(context.device) * scale
                weight.copy_(torch.where(PackState(context).owners[name] == FREE, fresh, weight))

    def phase_of(self, epoch: int, epochs: int) -> str:
        """Return `train`, or `retrain` for the last epochs of several."""
        if self.retrain_share == 0:
            return TRAIN
        retrained = min(max(1, round(self.retrain_share * epochs)), epochs - 1)
        return RETRAIN if epoch >= epochs - retrained else TRAIN

    def begin_phase(self, context: LearnerContext) -> None:
        if context.phase == RETRAIN:
            self._prune(context)

    def end_task(self, context: LearnerContext) -> None:
        """Prune unless retraining has begun, and store the task's biases."""
        if context.phase == TRAIN:
            self._prune(context)
        elif context.phase != RETRAIN:
            _clear(context)
        if self.biases == "task":
            for name, values in _vectors(context).items():
                PackState(context).vectors[context.task, name] = values.detach().clone()

    def report(self, context: LearnerContext) -> dict[str, float]:
        """Return the share of all weights that no task owns yet."""
        owners = torch.cat([PackState(context).owners[name].flatten() for name, _ in _weights(context)])
        return {"free_weights": float((owners == FREE).double().mean())}

    def task_parameters(self, context: LearnerContext, task: int) -> Tensors:
        """Return the weights and biases of an earlier task; the network holds the present ones."""
        if task >= context.task:
            return {}
        tensors: Tensors = {}
        for name, weight in _weights(context):
            owners = PackState(context).owners[name]
            tensors[name] = torch.where((owners != FREE) & (owners <= task + 1), weight, 0.0)
        if self.biases == "task":
            tensors |= {name: PackState(context).vectors[task, name] for name in _vectors(context)}
        return tensors

    def project(self, context: LearnerContext, gradients: Tensors) -> Tensors:
        """Zero the gradients of weights outside the present phase."""
        learning = context.task + 1 if context.phase == RETRAIN else FREE
        for name, gradient in gradients.items():
            owners = PackState(context).owners.get(name)
            if owners is not None:
                gradient.masked_fill_(owners != learning, 0.0)
            elif self.biases == "first" and context.task > 0:
                gradient.zero_()
        return gradients

    def _prune(self, context: LearnerContext) -> None:
        """Assign the present task its share of the free weights, and zero the others."""
        left_of_unit = torch.zeros(context.outputs, dtype=torch.int64)
        for units in context.units[context.task :]:
            left_of_unit[units.cpu()] += 1
        heads = {layer.weight_name for layer in context.layers.values() if layer.is_head}
        for name, weight in _weights(context):
            owners = PackState(context).owners[name].clone()
            if name in heads:
                for unit in context.units[context.task].tolist():
                    left = int(left_of_unit[unit])
                    self._take(context.task, owners[unit], weight[unit], left, last_all=True)
            else:
                self._take(context.task, owners, weight, context.tasks - context.task)
            PackState(context).owners[name] = owners
        _clear(context)

    def _take(self, task: int, owners: Tensor, weight: Tensor, left: int, *, last_all: bool = False) -> None:
        """Enter the task into contiguous `owners`, in place, for its share of free weights.

        `left` counts the tasks that share these weights, this one included. With `last_all` the last task
        takes all, whatever `keep` says.
        """
        flat = owners.view(-1)
        free = (flat == FREE).nonzero()[:, 0]
        if self.keep is None or (last_all and left == 1):
            count = round(len(free) / left)
        else:
            count = round(self.keep * len(free))
        # Stable, so that equal weights are taken in the same order everywhere.
        size = weight.detach().reshape(-1)[free].abs()
        largest = size.argsort(descending=True, stable=True)[: max(count, 1)]
        flat[free[largest]] = task + 1


def _weights(context: LearnerContext) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of linear and convolutional layers with their names, those of tied layers once."""
    named = {layer.weight_name for layer in context.layers.values()}
    yield from ((name, p) for name, p in context.network.named_parameters() if name in named)


def _vectors(context: LearnerContext) -> Tensors:
    """Return all other parameters: biases, and scales and shifts of normalisation layers."""
    named = {layer.weight_name for layer in context.layers.values()}
    return {name: p for name, p in context.network.named_parameters() if name not in named}


def _clear(context: LearnerContext) -> None:
    """Zero the free weights, as the tasks so far expect."""
    with torch.no_grad():
        for name, weight in _weights(context):
            weight.masked_fill_(PackState(context).owners[name] == FREE, 0.0)
