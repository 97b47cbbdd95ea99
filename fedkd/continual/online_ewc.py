"""Online elastic weight consolidation: one penalty for all old tasks, around the last one's weights."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedkd.continual.anchor import ANCHOR, IMPORTANCE, remember, remembered, squared_distance
from fedkd.continual.context import LearnerContext
from fedkd.continual.fast_steps import FastSteps
from fedkd.continual.fisher import Labels, Samples, fisher_diagonal
from fedkd.continual.learner import Learner, Step
from fedkd.hyperparameters import STRICT


@dataclass(frozen=True, config=STRICT)
class OnlineEWC(FastSteps, Learner):
    """Hold every weight to where the last task left it, as hard as all old tasks' Fisher information says.

    ::

        F      ← γ F + F_t                       at the end of task t; F_t as in `ewc`
        penalty = λ/2 Σ_i F_i (θ_i − θ_i*)²      θ* the weights at the end of the last task

    With γ = 1 it differs from `ewc` in the anchor alone, and costs the same.
    """

    name: ClassVar[str] = "online_ewc"
    recordable: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Schwarz et al., Progress & Compress: A scalable framework for continual learning, ICML 2018,"
        " arXiv 1805.06370"
    )

    strength: Annotated[float, Field(ge=0)] = 1000.0
    """λ, as in `ewc`: sweep it over powers of ten from 1e2. Plain SGD needs ``lr · λ · max F`` below 2, or
    training diverges."""
    decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """γ: what is left of the old tasks' information after each task. 1 keeps all of it, which stiffens the
    network as tasks add up; 0.9 or less forgets gracefully in long streams."""
    labels: Labels = "sampled"
    samples: Samples = None

    def penalty(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return ``λ/2 Σ_i F_i (θ_i − θ_i*)²``."""
        distance = squared_distance(context)
        return None if distance is None else 0.5 * self.strength * distance

    def end_task(self, context: LearnerContext) -> None:
        """Let the old tasks' information fade, add the task's, and anchor the present weights."""
        old = remembered(context, IMPORTANCE)
        for name, own in fisher_diagonal(context, self.labels, self.samples).items():
            context.memory[IMPORTANCE + name] = self.decay * old[name] + own if old else own
        remember(context, ANCHOR, self.trainable(context))
