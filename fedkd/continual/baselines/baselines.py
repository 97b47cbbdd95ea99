"""Baselines and references: plain training on the stream, on all tasks so far, or on each task alone."""

from dataclasses import replace
from typing import ClassVar

import torch

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Batch, Learner, LearnerTraits
from fedkd.continual.state import LearnerState, TableField
from fedkd.plugins import hyperparameters


@hyperparameters
class Naive(Learner):
    """Train on each task in turn, without protection against forgetting."""

    name: ClassVar[str] = "naive"


@hyperparameters
class Cumulative(Learner):
    """Continue training on the samples of all tasks so far.

    A reference, not a continual learner: it keeps all samples. It is `joint` without the restart: an upper
    bound at every moment, with longer and longer rounds.
    """

    name: ClassVar[str] = "cumulative"
    traits: ClassVar[LearnerTraits] = LearnerTraits(retrains_old_tasks=True)

    def batch(self, context: LearnerContext) -> Batch:
        return Batch(range(context.task + 1))


class InitialState(LearnerState):
    """The initial weights and buffers, by name."""

    initial = TableField()


@hyperparameters
class Single(Learner):
    """Start each task from the initial weights; earlier tasks are lost.

    A reference for `gain_over_single`. Its stored bytes are the initial weights.
    """

    name: ClassVar[str] = "single"
    traits: ClassVar[LearnerTraits] = LearnerTraits(
        begins_anew=True, closed="begins every task with a fresh network"
    )

    def prepare(self, context: LearnerContext) -> None:
        initial = {name: values.detach().clone() for name, values in context.network.state_dict().items()}
        InitialState(context).initial.put(initial)

    def begin_task(self, context: LearnerContext) -> None:
        initial = InitialState(context).initial
        with torch.no_grad():
            for name, values in context.network.state_dict().items():
                values.copy_(initial[name])


@hyperparameters
class Joint(Single):
    """Restart with each task and train on the samples of all tasks so far.

    A reference, not a continual learner, since it keeps all samples: the upper end of the scale, for
    `intransigence`. Its stored bytes are the initial weights alone.
    """

    name: ClassVar[str] = "joint"
    traits: ClassVar[LearnerTraits] = replace(Single.traits, retrains_old_tasks=True)

    def batch(self, context: LearnerContext) -> Batch:
        return Batch(range(context.task + 1))
