"""Elastic weight consolidation, one quadratic penalty for each old task, or one around the last."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedkd.continual.anchor import ANCHOR, IMPORTANCE, remember, remembered, squared_distance
from fedkd.continual.context import LearnerContext
from fedkd.continual.fast_steps import FastSteps
from fedkd.continual.fisher import Labels, Samples, fisher_diagonal
from fedkd.continual.learner import Learner, Step
from fedkd.hyperparameters import STRICT

CONSTANT = "constant"


@dataclass(frozen=True, config=STRICT)
class EWC(FastSteps, Learner):
    """Hold every weight to where it was after each old task, as hard as that task's Fisher information says.

    ::

        F_j     = mean_n (∂ log p(y_n | x_n, θ_j*) / ∂θ)²        at the end of task j, sample by sample
        penalty = λ/2 Σ_j Σ_i F_ji (θ_i − θ_ji*)²

    A sum of parabolas is a parabola, so the old tasks are kept as one, exactly, whatever their number::

        Σ_j F_j (θ − θ_j*)² = S (θ − m)² + K,    S = Σ_j F_j,    m = Σ_j F_j θ_j* / S

    It costs two numbers a weight. K, of which the weights feel nothing, is kept so that the penalty is the
    paper's.

    Other codes called EWC, that of HAT (Serrà et al., 2018, arXiv 1801.01423) among them, pull to the weights
    after the last task alone, with the mean of all tasks' information; that is `anchor = "last"`::

        F       = mean_j F_j
        penalty = λ/2 Σ_i F_i (θ_i − θ_i*)²      θ* the weights at the end of the last task

    Each old task is held ever less as tasks add up; with the sum in place of the mean it is `online_ewc`.

    It helps where tasks have a head of their own, less where they share one, and hardly where new classes
    come up one after another in a shared head.
    """

    name: ClassVar[str] = "ewc"
    recordable: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 114 (13), 2017,"
        " arXiv 1612.00796"
    )

    strength: Annotated[float, Field(ge=0)] = 1000.0
    """λ. Sweep it over powers of ten: F is small where a task was learned well, and λ with it large. Split
    MNIST with Adam: 1e2 to 1e6 with a head a task, 1e3 and more with one head. Plain SGD needs
    ``lr · λ · max F`` below 2, or training diverges; Adam does not mind."""
    anchor: Literal["each", "last"] = "each"
    """What weights are pulled to: where `each` old task left them, or where the `last` one did, as hard as
    the mean over old tasks says."""
    labels: Labels = "sampled"
    samples: Samples = None

    def penalty(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return ``λ/2 (S (θ − m)² + K)``; with the last anchor, ``λ/2 F (θ − θ*)²``."""
        distance = squared_distance(context)
        if distance is None:
            return None
        return 0.5 * self.strength * (distance + context.memory.get(CONSTANT, 0.0))

    def end_task(self, context: LearnerContext) -> None:
        """Take the task's parabola into the sum, or its information into the mean."""
        fisher = fisher_diagonal(context, self.labels, self.samples)
        weights = {name: p.detach() for name, p in self.trainable(context).items()}
        total, anchor = remembered(context, IMPORTANCE), remembered(context, ANCHOR)
        if self.anchor == "last":
            if total:
                earlier = context.task  # every task ends, one that a client missed too
                fisher = {name: (earlier * total[name] + own) / (earlier + 1) for name, own in fisher.items()}
            remember(context, IMPORTANCE, fisher)
            remember(context, ANCHOR, weights)
            return
        if not total:
            remember(context, IMPORTANCE, fisher)
            remember(context, ANCHOR, weights)
            context.memory[CONSTANT] = next(iter(weights.values())).new_zeros(())
            return
        for name, own in fisher.items():
            both = total[name] + own
            share = torch.where(both > 0, own / both, 0.0)  # where nothing is important, any anchor will do
            moved = weights[name] - anchor[name]
            context.memory[CONSTANT] = context.memory[CONSTANT] + (share * total[name] * moved.square()).sum()
            context.memory[ANCHOR + name] = anchor[name] + share * moved
            context.memory[IMPORTANCE + name] = both
