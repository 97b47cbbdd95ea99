"""Synaptic intelligence: importance is a weight's contribution to the fall of the loss."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from fedkd.continual.context import LearnerContext
from fedkd.continual.fast_steps import FastSteps
from fedkd.continual.learner import Learner, Tensors
from fedkd.continual.mixins import StepObserver
from fedkd.continual.regularisation.quadratic_penalty import AnchorState, add_importance, copies
from fedkd.plugins import hyperparameters


@hyperparameters
class SI(StepObserver, FastSteps, Learner):
    """Hold weights to the task's start, weighted by their contribution in earlier tasks.

    ::

        ω      ← ω − g (θ_after − θ_before)         each step; g: gradient of the loss without the penalty
        Ω      ← Ω + relu(ω) / ((θ − θ*)² + ξ)      at the end of a task, which then forgets ω
        penalty = c Σ_i Ω_i (θ_i − θ_i*)²           θ* the weights when the task began

    The penalty's gradient ``2cΩ(θ − θ*)`` joins the loss's after any clipping, so that g stays known.
    """

    name: ClassVar[str] = "si"
    recordable: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Zenke, Poole & Ganguli, Continual Learning Through Synaptic Intelligence, ICML 2017,"
        " arXiv 1703.04200"
    )

    strength: Annotated[float, Field(ge=0)] = 1000.0
    """c. Sweep it over powers of ten. Split MNIST with Adam: 1e2 to 1e3 with a head a task, 1e3 to 1e4 with
    one head. Plain SGD diverges unless ``2 · lr · c · max Ω`` is below 2; start at 1 if its steps are
    long, since they enlarge Ω too."""
    damping: Annotated[float, Field(gt=0)] = 0.1
    """ξ, in squared units of the weights; 0.1 in the paper. It bounds the importance of weights that hardly
    move. Well above all squared changes it only scales Ω, as a smaller c would."""

    def begin_task(self, context: LearnerContext) -> None:
        state, weights = AnchorState(context), self.trainable(context)
        state.anchor.put(copies(weights))
        state.path.put({name: torch.zeros_like(p) for name, p in weights.items()})

    def project(self, context: LearnerContext, gradients: Tensors) -> Tensors:
        for name, pull in self._pulls(context, self.trainable(context)).items():
            gradients[name] = gradients[name].add_(pull) if name in gradients else pull
        return gradients

    def after_step(self, context: LearnerContext, before: Tensors, gradients: Tensors) -> None:
        """Credit weights with the loss change of their step, to first order."""
        weights, pulls = self.trainable(context), self._pulls(context, before)
        for name, gradient in gradients.items():
            own = gradient - pulls[name] if pulls else gradient
            AnchorState(context).path[name].addcmul_(own, weights[name] - before[name], value=-1.0)

    def _pulls(self, context: LearnerContext, weights: Tensors) -> Tensors:
        state = AnchorState(context)
        anchor = state.anchor.part()
        return {
            name: (weights[name].detach() - anchor[name]).mul_(omega).mul_(2.0 * self.strength)
            for name, omega in state.importance.part().items()
        }

    def end_task(self, context: LearnerContext) -> None:
        """Turn the credit of the task into importance."""
        state, weights = AnchorState(context), copies(self.trainable(context))
        own = {
            name: state.path.pop(name).relu() / ((p - state.anchor[name]).square() + self.damping)
            for name, p in weights.items()
        }
        add_importance(context, own)
        state.anchor.put(weights)
