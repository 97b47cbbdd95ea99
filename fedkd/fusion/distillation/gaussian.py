"""Strategies of regression: clients exchange Gaussian predictions of transfer samples.

They take the place of `fedmd` and `knfu` with ``data.task = "regression"`` (see docs/howto/regression.md).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from fedkd.data import Head, join_outputs, split_outputs
from fedkd.fusion import Capabilities, FusionStrategy, Guidance, Knowledge
from fedkd.fusion.capabilities import GAUSSIANS
from fedkd.fusion.distillation.selection import asked_samples
from fedkd.fusion.math.gaussian import (
    combine_gaussians,
    in_medians,
    mean_gaussian_kl,
    mean_squared_wasserstein,
)
from fedkd.fusion.math.neighbour_weights import log_prior, neighbour_weights, uniform
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor


@hyperparameters
class GaussianStrategy(FusionStrategy):
    """Base of strategies that fuse Gaussian predictions.

    Targets are like outputs of models, `[M, 2·O]` or `[M, O]`. `head` is the scenario's `data.head`. With
    `mean` there are no variances, and all rules are the mean.
    """

    recordable: ClassVar[bool] = True
    head: ClassVar[Head] = "gaussian"

    combine: Literal["mixture", "precision", "mean"] = "mixture"
    """Combination of Gaussians. `mixture`: the variance includes the disagreement of clients; `precision`:
    certain clients count more, and the result is over-confident; `mean`: mean of means and of variances."""
    matching: Literal["kl", "scaled_error"] = "kl"
    """Loss of a client: `kl` (KL from the guidance to its prediction), or `scaled_error` (squared error of
    means in units of the guidance's variance). With `data.head = "mean"`, it is the squared error."""

    def with_head(self, head: Head) -> Self:
        """Return the strategy for models with another head."""
        found = copy.copy(self)
        object.__setattr__(found, "head", head)
        return found

    def fused(self, knowledge: Knowledge, weights: np.ndarray) -> np.ndarray:
        """Return targets `[R, M, C]` float32 for receivers with weights `[R, N]`."""
        return join_outputs(*combine_gaussians(weights, *self.gaussians(knowledge), self.combine), self.head)

    def gaussians(self, knowledge: Knowledge) -> tuple[np.ndarray, np.ndarray]:
        """Return means and variances `[N, M, O]` of the clients' predictions."""
        assert knowledge.logits is not None
        return split_outputs(knowledge.logits, self.head)

    def loss(self, student_logits: Tensor, targets: Tensor) -> Tensor:
        """Return the distance of outputs `[B, C]` to the guidance `[B, C]`."""
        from fedkd.training import gaussian_kl, scaled_error, squared_error

        if self.head == "mean":
            return squared_error(student_logits, targets)
        return (gaussian_kl if self.matching == "kl" else scaled_error)(student_logits, targets)


@hyperparameters
class GaussianMean(GaussianStrategy):
    """Distil the combination of all clients' Gaussian predictions, with equal weights."""

    name: ClassVar[str] = "fedmd"
    recordable: ClassVar[bool] = True
    capabilities: ClassVar[Capabilities] = Capabilities(
        guides="all_alike", over_graph="each", accepts=GAUSSIANS
    )

    samples_per_round: Annotated[int, Field(ge=1)] | None = None
    """Transfer samples drawn, predicted and matched each round; absent: all."""

    def request(
        self, transfer_size: int, memory: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> np.ndarray | None:
        """Return the round's transfer samples, ascending; None: all."""
        return asked_samples(transfer_size, self.samples_per_round, generator)

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return targets `[M, C]`, shared by all."""
        weights = uniform(len(knowledge.clients))
        return Guidance(self.fused(knowledge, weights[:1])[0], weights)


@hyperparameters
class GaussianKnFu(GaussianStrategy):
    """Weigh each client's Gaussian predictions by how close they are to the receiver's.

    ::

        d_nm = mean_i KL(N_n(x_i) ‖ N_m(x_i))        receiver first, in units of the median over pairs
        W_nm = exp(−β d_nm) / Σ_k exp(−β d_nk)       effectiveness weights, self included
        K_n[i] = combination of N_m(x_i) under W_n   effective knowledge, for client n alone
    """

    name: ClassVar[str] = "knfu"
    recordable: ClassVar[bool] = True

    beta: Annotated[float, Field(ge=0)] = 1.0
    """β: how sharply distance costs weight. The median distance is 1, so 1 is between equal weights (0) and
    almost local training (10)."""
    divergence: Literal["kl", "w2"] = "kl"
    """Distance of receiver and sender: `kl`, or `w2`, the squared Wasserstein distance."""
    neighbours: Annotated[int, Field(ge=0)] | None = None
    """Number of nearest others to keep, ties included; absent: all."""
    threshold: Annotated[float, Field(ge=0)] | None = None
    """Largest distance of others to keep, in medians; absent: all are kept."""
    weight_by_size: bool = False
    """Multiply weights by the sender's number of training samples."""
    perplexity: Annotated[float, Field(ge=1)] | None = None
    """Effective number of neighbours that decides each client's β; absent: `beta` for all."""
    stale_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """ρ: weight factor ρ^a of the last knowledge of a client that misses the round, of age a; absent: it is
    left out."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            guides="each",
            weighs_age=True,
            over_graph="each",
            stale_decay=self.stale_decay,
            accepts=GAUSSIANS,
        )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return personal effective knowledge `[N, M, C]` and its weights `[N, N]`."""
        distance = mean_gaussian_kl if self.divergence == "kl" else mean_squared_wasserstein
        d = in_medians(distance(*self.gaussians(knowledge)))
        weights = neighbour_weights(
            d,
            self.beta,
            neighbours=self.neighbours,
            threshold=self.threshold,
            threshold_kind="median",
            perplexity=self.perplexity,
            log_prior=log_prior(knowledge, self.stale_decay, by_size=self.weight_by_size),
        )
        return Guidance(self.fused(knowledge, weights), weights, distances=d)
