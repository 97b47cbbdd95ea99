"""Naive: train on and on; what every learner is compared with."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass

from fedkd.continual.learner import Learner
from fedkd.hyperparameters import STRICT


@dataclass(frozen=True, config=STRICT)
class Naive(Learner):
    """Train on each task as it comes, and do nothing against forgetting."""

    name: ClassVar[str] = "naive"
