"""Joint: what a network reaches that has all tasks' samples at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic.dataclasses import dataclass

from fedkd.continual.context import LearnerContext
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

    def training_tasks(self, context: LearnerContext) -> Sequence[int]:
        """Return all tasks so far."""
        return range(context.task + 1)
