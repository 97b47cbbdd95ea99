"""Single: what a network reaches that learns each task alone."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass

from fedkd.continual.learner import Learner
from fedkd.continual.side import LearnerSide
from fedkd.hyperparameters import STRICT

INITIAL = "initial/"


@dataclass(frozen=True, config=STRICT)
class Single(Learner):
    """Begin anew with every task: earlier ones neither help nor hinder, and are lost.

    A reference, not a continual learner: the diagonal of its accuracy matrix is what `gain_over_single` is
    measured against. Its stored bytes are the initial weights.
    """

    name: ClassVar[str] = "single"

    def prepare(self, side: LearnerSide) -> None:
        """Remember the initial weights."""
        for name, values in side.network.state_dict().items():
            side.memory[INITIAL + name] = values.detach().clone()

    def begin_task(self, side: LearnerSide) -> None:
        """Go back to them."""
        with torch.no_grad():
            for name, values in side.network.state_dict().items():
                values.copy_(side.memory[INITIAL + name])
