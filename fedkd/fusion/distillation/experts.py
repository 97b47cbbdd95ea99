"""`experts`: clients with samples of a class teach it to all."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge, softmax
from fedkd.fusion.distillation.soft_labels import TemperedLabels
from fedkd.fusion.math import distribution as distributions
from fedkd.fusion.math.combine import class_experts
from fedkd.fusion.math.neighbour_weights import effectiveness, log_prior
from fedkd.plugins import hyperparameters


@hyperparameters
class Experts(TemperedLabels):
    """Average predictions class by class, weighted by each client's share of the class.

    ::

        q_m[i]  = softmax(z_m(x_i) / T)                           predictions on the transfer set
        e_m     = smooth(mean_i q_m[i])                           estimated classes of client m
        F[i, c] ∝ Σ_m e_m[c] q_m[i, c] / Σ_m e_m[c]               rows renormalised, one target for all

    A plain mean gives all clients a vote about all classes: nine that never saw a class outvote the one that
    knows it. `experts` is KnFu's `per_class` at β = 0 with one target for all, so absent clients receive it
    too.

    Like every shared target it costs local accuracy if local training and distillation alternate;
    `training.recipe = "joint"` avoids that. Under the recipe class weighting adds up to a tenth to the gain
    of the plain mean, and more under partial participation.

    Mansour, Mohri and Rostamizadeh weigh sources by distributions ("Domain Adaptation with Multiple Sources",
    2008), FedGen by label counts (Zhu et al., 2021), UWA by uncertainty (arXiv 2509.15147). Here mean
    predictions estimate the class shares. All clients must be trusted: a poisoned client that always predicts
    one class becomes its expert.
    """

    name: ClassVar[str] = "experts"

    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of predictions and of the loss. Above 1 it teaches more about unlikely classes and brings experts and
    others closer together."""
    distribution: Literal["soft", "hard", "shared", "calibrated"] = "soft"
    """Estimate of a client's class shares: `soft` (mean prediction), `hard` (share of votes), `calibrated`
    (relative to the federation's mean; for a transfer set with unequal classes), `shared` (true label counts;
    it leaks labels, so only as an ablation's oracle)."""
    epsilon: Annotated[float, Field(ge=1e-12, le=1)] | None = None
    """Smoothing of class shares; absent: 1e-6, or 1e-2 for `hard`. At 1 all clients are nearly equal experts
    and the target is nearly the mean."""
    weight_by_size: bool = False
    """Multiply class shares by the number of training samples; for clients of very unequal size."""
    stale_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """ρ: a client that misses the round is represented by its last knowledge, of age a rounds, with
    weight · ρ^a; absent: it is left out. Try 0.5 to 0.9 when few clients take part."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            guides="all_alike",
            weighs_age=True,
            over_graph="each",
            label_counts=self.distribution == "shared",
            stale_decay=self.stale_decay,
        )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the experts' target `[M, C]`, shared by all, with each sender's weight, `[N, N]`."""
        assert knowledge.logits is not None
        q = softmax(knowledge.logits, self.temperature)
        e = distributions.expertise(self.distribution, q, knowledge.label_counts, self.epsilon)
        prior = log_prior(knowledge, self.stale_decay, by_size=self.weight_by_size)
        weights = effectiveness(np.zeros((len(q), len(q))), 0.0, log_prior=prior)
        return Guidance(class_experts(weights[0], q, e), weights)
