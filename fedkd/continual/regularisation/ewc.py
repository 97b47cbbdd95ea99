"""Elastic weight consolidation: one penalty for each old task, one around the last, or the online form."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Step
from fedkd.continual.regularisation.fisher import Labels, Samples, fisher_diagonal
from fedkd.continual.regularisation.quadratic_penalty import (
    AnchorState,
    QuadraticPenalty,
    add_importance,
    copies,
    squared_distance,
)
from fedkd.plugins import hyperparameters


@hyperparameters
class EWC(QuadraticPenalty):
    """Hold weights to their values after each old task, weighted by its Fisher information.

    ::

        F_j     = mean_n (∂ log p(y_n | x_n, θ_j*) / ∂θ)²        at the end of task j, sample by sample
        penalty = λ/2 Σ_j Σ_i F_ji (θ_i − θ_ji*)²

    The sum is one parabola, at two numbers a weight; K has no gradient::

        Σ_j F_j (θ − θ_j*)² = S (θ − m)² + K,    S = Σ_j F_j,    m = Σ_j F_j θ_j* / S

    Other code called EWC, such as HAT's (Serrà et al., 2018, arXiv 1801.01423), uses `anchor = "last"`::

        F       = mean_j F_j
        penalty = λ/2 Σ_i F_i (θ_i − θ_i*)²      θ* the weights at the end of the last task

    With the sum in place of the mean it is `online_ewc`. EWC helps most where each task has its own head,
    less with a shared head, and hardly where new classes appear in a shared head.
    """

    name: ClassVar[str] = "ewc"
    recordable: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, PNAS 114 (13), 2017,"
        " arXiv 1612.00796"
    )
    factor: ClassVar[float] = 0.5

    strength: Annotated[float, Field(ge=0)] = 1000.0
    """λ. Sweep it over powers of ten: F is small for well-learned tasks, so λ is large. Split MNIST with
    Adam: 1e2 to 1e6 with a head a task, 1e3 and more with one head. Plain SGD diverges unless
    ``lr · λ · max F`` is below 2; Adam does not."""
    anchor: Literal["each", "last"] = "each"
    """Target of the weights: their values after `each` old task, or after the `last` one, weighted by the
    mean over old tasks."""
    labels: Labels = "sampled"
    samples: Samples = None

    def penalty(self, context: LearnerContext, step: Step) -> Tensor | None:
        """Return ``λ/2 (S (θ − m)² + K)``; with the last anchor, ``λ/2 F (θ − θ*)²``."""
        distance, constant = squared_distance(context), AnchorState(context).constant
        if distance is None:
            return None
        return 0.5 * self.strength * (distance + (0.0 if constant is None else constant))

    def end_task(self, context: LearnerContext) -> None:
        """Add the task's parabola to the sum, or its information to the mean."""
        state, weights = AnchorState(context), copies(self.trainable(context))
        fisher = fisher_diagonal(context, self.labels, self.samples)
        total, anchor = state.importance.part(), state.anchor.part()
        if self.anchor == "last" and total:
            earlier = context.task  # every task ends, one that a client missed too
            fisher = {name: (earlier * total[name] + own) / (earlier + 1) for name, own in fisher.items()}
        if self.anchor == "last" or not total:
            state.importance.put(copies(fisher))
            state.anchor.put(weights)
            if self.anchor == "each":
                state.constant = next(iter(weights.values())).new_zeros(())
            return
        for name, own in fisher.items():
            both = total[name] + own
            share = torch.where(both > 0, own / both, 0.0)  # where nothing is important, any anchor will do
            moved = weights[name] - anchor[name]
            assert state.constant is not None
            state.constant = state.constant + (share * total[name] * moved.square()).sum()
            state.anchor[name] = anchor[name] + share * moved
            state.importance[name] = both


@hyperparameters
class OnlineEWC(QuadraticPenalty):
    """Hold weights to their last values, weighted by all old tasks' Fisher information.

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
    factor: ClassVar[float] = 0.5

    strength: Annotated[float, Field(ge=0)] = 1000.0
    """λ, as in `ewc`: sweep it over powers of ten from 1e2. Plain SGD needs ``lr · λ · max F`` below 2, or
    training diverges."""
    decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    """γ: what is left of the old tasks' information after each task. 1 keeps all of it, which stiffens the
    network as tasks add up; 0.9 or less forgets gracefully in long streams."""
    labels: Labels = "sampled"
    samples: Samples = None

    def end_task(self, context: LearnerContext) -> None:
        """Decay the old information, add the task's, and anchor the present weights."""
        add_importance(context, fisher_diagonal(context, self.labels, self.samples), self.decay)
        AnchorState(context).anchor.put(copies(self.trainable(context)))
