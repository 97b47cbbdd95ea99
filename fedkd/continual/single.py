"""Single: what a network reaches that learns each task alone."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Learner, LearnerTraits
from fedkd.hyperparameters import STRICT

INITIAL = "initial/"


@dataclass(frozen=True, config=STRICT)
class Single(Learner):
    """Begin anew with every task: earlier ones neither help nor hinder, and are lost.

    A reference, not a continual learner: the diagonal of its accuracy matrix is what `gain_over_single` is
    measured against. Its stored bytes are the initial weights.
    """

    name: ClassVar[str] = "single"
    traits: ClassVar[LearnerTraits] = LearnerTraits(
        begins_anew=True, closed="begins every task with a fresh network"
    )

    def prepare(self, context: LearnerContext) -> None:
        """Remember the initial weights."""
        for name, values in context.network.state_dict().items():
            context.memory[INITIAL + name] = values.detach().clone()

    def begin_task(self, context: LearnerContext) -> None:
        """Go back to them."""
        with torch.no_grad():
            for name, values in context.network.state_dict().items():
                values.copy_(context.memory[INITIAL + name])
