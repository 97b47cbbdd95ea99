"""Cumulative: what a network reaches that goes on training on all samples so far."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Batch, Learner, LearnerTraits
from fedkd.hyperparameters import STRICT


@dataclass(frozen=True, config=STRICT)
class Cumulative(Learner):
    """Go on with every task, and train on the samples of all tasks so far.

    A reference, not a continual learner, since it keeps all samples: `joint` without the new beginning. What
    is trained on early is trained on in every later task again, so it is the upper end of the scale at every
    moment, for the price of ever longer rounds. It stores nothing; the samples come on top of that.
    """

    name: ClassVar[str] = "cumulative"
    traits: ClassVar[LearnerTraits] = LearnerTraits(retrains_old_tasks=True)

    def batch(self, context: LearnerContext) -> Batch:
        """Return the samples of all tasks so far."""
        return Batch(range(context.task + 1))
