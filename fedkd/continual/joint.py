"""Joint: what a network reaches that has all tasks' samples at once."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic.dataclasses import dataclass

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Batch, LearnerTraits
from fedkd.continual.single import Single
from fedkd.hyperparameters import STRICT


@dataclass(frozen=True, config=STRICT)
class Joint(Single):
    """Begin anew with every task, and train on the samples of all tasks so far.

    A reference, not a continual learner, since it keeps all samples: the upper end of the scale, and what
    `intransigence` is measured against. Its stored bytes are the initial weights; the samples come on top of
    them.
    """

    name: ClassVar[str] = "joint"
    traits: ClassVar[LearnerTraits] = replace(Single.traits, retrains_old_tasks=True)

    def batch(self, context: LearnerContext) -> Batch:
        """Return the samples of all tasks so far."""
        return Batch(range(context.task + 1))
