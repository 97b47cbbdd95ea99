"""`experts`: class by class, those who have a class teach it to everybody."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedkd.fusion import distribution as distributions
from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.combine import class_experts
from fedkd.fusion.probabilities import softmax
from fedkd.fusion.soft_labels import TemperedLabels
from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.fusion.weights import effectiveness, log_prior
from fedkd.hyperparameters import STRICT


@dataclass(frozen=True, config=STRICT)
class Experts(TemperedLabels):
    """Average predictions class by class, each client weighing as much as it has of the class.

    ::

        q_m[i]  = softmax(z_m(x_i) / T)                           predictions on the transfer set
        e_m     = smooth(mean_i q_m[i])                           what client m seems to know
        F[i, c] ∝ Σ_m e_m[c] q_m[i, c] / Σ_m e_m[c]               rows renormalised, one target for all

    A plain mean asks all clients about all classes. Of ten clients nine may never have seen a class, and nine
    predictions of other classes outvote the one that knows. It is KnFu's `per_class` at β = 0, except that
    one target serves all, so that it reaches clients that were absent too.

    This is class weighting alone. Like every shared target it costs a client accuracy on data like its own
    where clients train in turn; `training.recipe = "joint"` is what changes that, with any strategy. Under
    the recipe class weighting adds up to a tenth to the gain of the plain mean, and more under partial
    participation.

    Weighting sources by their distributions is due to Mansour, Mohri and Rostamizadeh ("Domain Adaptation
    with Multiple Sources", 2008). FedGen weighs clients by their label counts (Zhu et al., 2021), UWA by
    uncertainty (arXiv 2509.15147). Here class shares are estimated from mean predictions alone.

    A client states its own expertise, by what it predicts. A poisoned client that always predicts one class
    becomes the expert of that class, so all clients have to be trusted.
    """

    name: ClassVar[str] = "experts"

    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of predictions and of the loss. Above 1 it teaches more about unlikely classes and brings experts and
    others closer together."""
    distribution: Literal["soft", "hard", "shared", "calibrated"] = "soft"
    """What a client has of each class: `soft` (mean prediction), `hard` (share of votes), `calibrated`
    (relative to the federation's mean; for a transfer set with unequal classes), `shared` (true label counts;
    it leaks labels, so only as an ablation's oracle)."""
    epsilon: Annotated[float, Field(ge=1e-12, le=1)] | None = None
    """Smoothing of what a client has of each class; absent: 1e-6, or 1e-2 for `hard`. At 1 all clients are
    nearly equal experts and the target is nearly the mean."""
    weight_by_size: bool = False
    """Multiply what a client has of each class by its number of training samples; for clients of very unequal
    size."""
    stale_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """ρ: a client that misses the round is represented by its last knowledge, of age a rounds, with
    weight · ρ^a; absent: it is left out. Try 0.5 to 0.9 when few clients take part."""

    @cached_property
    def capabilities(self) -> Capabilities:
        """Needs and abilities at these hyper-parameters."""
        return Capabilities(
            guides="all_alike",
            weighs_age=True,
            over_graph="each",
            label_counts=self.distribution == "shared",
            stale_decay=self.stale_decay,
        )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the experts' target `[M, C]`, shared by all, with what each sender weighs, `[N, N]`."""
        assert knowledge.logits is not None
        q = softmax(knowledge.logits, self.temperature)
        e = distributions.expertise(self.distribution, q, knowledge.label_counts, self.epsilon)
        clients = len(q)
        samples = knowledge.samples if self.weight_by_size else None
        prior = log_prior(
            clients,
            samples=samples,
            age=knowledge.age,
            decay=self.stale_decay,
            freshness=knowledge.freshness,
        )
        weights = effectiveness(np.zeros((clients, clients)), 0.0, log_prior=prior)
        return Guidance(class_experts(weights[0], q, e), weights)
