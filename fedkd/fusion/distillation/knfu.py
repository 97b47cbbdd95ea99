"""KnFu: each client distils its own fusion of effective knowledge.

Seyedmohammadi et al., arXiv 2403.11892. The formulas are reconstructed from the paper (see the docs).
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.errors import UserError
from fedkd.fusion import Capabilities, Guidance, Knowledge, RoundExtent, ServerCost, softmax
from fedkd.fusion.distillation.soft_labels import TemperedLabels
from fedkd.fusion.math import distribution as distributions
from fedkd.fusion.math.combine import class_experts, combine, fill_in
from fedkd.fusion.math.neighbour_weights import effectiveness, log_prior, neighbour_weights
from fedkd.fusion.math.similarity import ALL, DIVERGENCES, prediction_cosine, prediction_kl
from fedkd.fusion.math.weight_blocks import BlockedWeights, fits_one_block, fusion_memory
from fedkd.plugins import hyperparameters


@hyperparameters
class KnFu(ServerCost, TemperedLabels):
    """Weigh each client's predictions by how close its class distribution is to the receiver's.

    ::

        q_n[i] = softmax(z_n(x_i) / T)              predictions on the transfer set
        p_n    = smooth(mean_i q_n[i])              estimated classes of client n
        d_nm   = KL(p_n ‖ p_m)                      receiver first
        W_nm   = exp(−β d_nm) / Σ_k exp(−β d_nk)    effectiveness weights, self included
        K_n[i] = Σ_m W_nm q_m[i]                    effective knowledge, for client n alone

    β = 0 is FedMD with averaged probabilities; a large β is nearly local training. The useful β depends on
    heterogeneity: between Dirichlet(α) label mixes of ten classes the median `d` is about 2.5 at α = 0.3, 0.8
    at α = 1 and 0.08 at α = 10. If the effective number of neighbours is near 1 or N, β has hardly any
    influence.
    """

    name: ClassVar[str] = "knfu"
    paper: ClassVar[str] = "Seyedmohammadi et al., KnFu: Effective Knowledge Fusion, arXiv 2403.11892, 2024"

    beta: Annotated[float, Field(ge=0)] = 10.0
    """β: how sharply distance costs weight; 10 in the paper. Aim at 1 / (typical distance) and sweep it over
    powers of ten. 0 weighs all equally, 1e6 leaves each client alone."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of predictions and loss. Above 1 distributions come closer together, so raise β with it."""
    distribution: Literal["soft", "hard", "shared", "calibrated"] = "soft"
    """A client's class distribution: `soft` (mean prediction), `hard` (share of votes; sharper for uncertain
    models), `calibrated` (relative to the federation's mean; for a transfer set with unequal classes),
    `shared` (true label counts; it leaks labels, so only as an ablation's oracle)."""
    divergence: Literal["kl", "reverse", "symmetric", "js", "prediction_kl", "prediction_cosine"] = "kl"
    """Distance of receiver and sender: `kl` (the sender must know the receiver's classes), `reverse` (it must
    know no others), `symmetric` (mean of both), `js` (at most 0.69, so it needs a larger β). Or sample by
    sample, for clients with equal labels and different domains: `prediction_kl` (mean KL),
    `prediction_cosine` (at most 1)."""
    epsilon: Annotated[float, Field(ge=1e-12, le=1)] | None = None
    """Smoothing of distributions; absent: 1e-6, or 1e-2 for `hard`. It bounds distances by about −log ε:
    raise it if single missing classes decide everything."""
    neighbours: Annotated[int, Field(ge=0)] | None = None
    """Number of nearest others to keep, ties included; absent: all. It guards against many slightly wrong
    neighbours; start at the size of a group of similar clients."""
    threshold: Annotated[float, Field(ge=0)] | None = None
    """Largest distance of others to keep, in units of `threshold_kind`; absent: all are kept."""
    threshold_kind: Literal["quantile", "median"] = "quantile"
    """`quantile` of the distances (0.25 keeps the closest quarter of pairs) or multiple of their `median`."""
    weight_by_size: bool = False
    """Multiply weights by the sender's number of training samples; for clients of very unequal size."""
    per_class: bool = False
    """A variant: a sender also counts by its own p_m[c], class by class: `K_n[i,c] ∝ Σ_m W_nm p_m[c]
    q_m[i,c] / Σ_k W_nk p_k[c]`, rows renormalised. It matters at a small β; at β = 0 it is `experts`."""
    absent_by_experts: bool = False
    """A variant: class experts F of the whole federation teach a client's rare classes (see `experts`):
    `(1 − g) K_n[i] + g F[i]`, g = Σ_c max(0, 1 − C p_n[c]) F[i,c]. For a large β, which prefers similar
    clients."""
    perplexity: Annotated[float, Field(ge=1)] | None = None
    """A variant: each client has the β, instead of `beta`, that gives it this effective number of neighbours;
    absent: `beta` for all. It compensates distances that differ between clients and rounds."""
    stale_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """ρ: a client that misses the round is represented by its last knowledge, of age a rounds, with
    weight · ρ^a; absent: it is left out. Try 0.5 to 0.9 when few clients take part."""
    distribution_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Exponential moving average of class distributions over rounds. 0.5 to 0.9 steadies the weights of small
    models; keep it low if clients' data drift (streams of tasks)."""

    def __post_init__(self) -> None:
        if self.threshold is not None and self.threshold_kind == "quantile" and self.threshold > 1:
            raise UserError(f"must be ≤ 1 as a quantile, got {self.threshold:g}", key="fusion.threshold")

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            guides="each",
            weighs_age=True,
            over_graph="each",
            label_counts=self.distribution == "shared",
            mixes=not (self.per_class or self.absent_by_experts),
            stale_decay=self.stale_decay,
        )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return personal effective knowledge `[N, M, C]` and its weights `[N, N]`, in blocks if large."""
        assert knowledge.logits is not None
        q = softmax(knowledge.logits, self.temperature)
        p = distributions.estimate(self.distribution, q, knowledge.label_counts)
        kept: dict[str, np.ndarray] = {}
        if self.distribution_momentum > 0:
            p, kept = distributions.moving_average(
                p, knowledge.clients, memory, self.distribution_momentum, knowledge.has_come
            )
        epsilon = distributions.EPSILON[self.distribution] if self.epsilon is None else self.epsilon
        p = distributions.finished(self.distribution, p, epsilon)
        prior = log_prior(knowledge, self.stale_decay, by_size=self.weight_by_size)
        experts = None
        if self.absent_by_experts:
            everyone = effectiveness(np.zeros((1, len(q))), 0.0, log_prior=prior)
            experts = class_experts(everyone[0], q, p)

        def rows(receivers: slice) -> tuple[np.ndarray, np.ndarray]:
            d = self._distances(p, q, epsilon, receivers)
            return d, self._weights(d, prior, receivers.start or 0)

        def fused(weights: np.ndarray, receivers: slice) -> np.ndarray:
            targets = combine(weights, q, expertise=p if self.per_class else None)
            return targets if experts is None else fill_in(targets, experts, p[receivers])

        mixed = q if self.capabilities.mixes else None
        if self._needs_all_pairs or fits_one_block(len(q)):
            d, weights = rows(ALL)
            return Guidance(fused(weights, ALL), weights, kept, distances=d, mixed=mixed)
        blocked, targets = BlockedWeights(len(q), rows), np.empty_like(q)
        for receivers, block in blocked.visit():
            targets[receivers] = fused(block, receivers)
        return Guidance(targets, blocked, kept, mixed=mixed)

    def server_memory(self, extent: RoundExtent) -> int:
        """Return the bytes of a fusion: pairs of many clients come in blocks, unless all are needed."""
        return fusion_memory(extent.clients, extent.samples, extent.classes, whole=self._needs_all_pairs)

    @property
    def _needs_all_pairs(self) -> bool:
        return self.threshold is not None or self.divergence not in DIVERGENCES

    def _weights(self, d: np.ndarray, prior: np.ndarray, first: int) -> np.ndarray:
        return neighbour_weights(
            d,
            self.beta,
            neighbours=self.neighbours,
            threshold=self.threshold,
            threshold_kind=self.threshold_kind,
            perplexity=self.perplexity,
            log_prior=prior,
            first=first,
        )

    def _distances(self, p: np.ndarray, q: np.ndarray, epsilon: float, receivers: slice) -> np.ndarray:
        if self.divergence == "prediction_kl":
            return prediction_kl(q, epsilon)
        if self.divergence == "prediction_cosine":
            return prediction_cosine(q)
        return DIVERGENCES[self.divergence](p, receivers)
