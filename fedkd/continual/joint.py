"""Joint: what a network reaches that has all tasks' samples at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass

from fedkd.continual.learner import Learner
from fedkd.continual.side import LearnerSide
from fedkd.hyperparameters import STRICT

INITIAL = "initial/"


@dataclass(frozen=True, config=STRICT)
class Joint(Learner):
    """Begin anew with every task, and train on the samples of all tasks so far.

    No continual learner, since it keeps all samples: the upper end of the scale, and what `intransigence` is
    measured against. Its stored bytes are the initial weights alone; the samples come on top of them.
    """

    name: ClassVar[str] = "joint"

    def prepare(self, side: LearnerSide) -> None:
        """Remember the initial weights."""
        for name, values in side.network.state_dict().items():
            side.memory[INITIAL + name] = values.detach().clone()

    def begin_task(self, side: LearnerSide) -> None:
        """Go back to them."""
        with torch.no_grad():
            for name, values in side.network.state_dict().items():
                values.copy_(side.memory[INITIAL + name])

    def training_tasks(self, side: LearnerSide) -> Sequence[int]:
        """Return all tasks so far."""
        return range(side.task + 1)
