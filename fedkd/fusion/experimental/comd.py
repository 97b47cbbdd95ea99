"""`comd`: competitive distillation; better clients teach worse ones on each sample (arXiv 2311.08213)."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion.capabilities import TAUGHT, Capabilities
from fedkd.fusion.distillation.competence import sample_losses
from fedkd.fusion.distillation.soft_labels import TemperedLabels
from fedkd.fusion.math.probabilities import log_softmax, row_kl, softmax
from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.fusion.views import Arrays, ClientView, Distillation
from fedkd.plugins import hyperparameters

DRAWN = "comd/drawn"
"""Transfer samples that a client drew of its last guidance."""


@hyperparameters
class CoMD(TemperedLabels):
    """Distil each sample from the clients that predict it better.

    ::

        ℓ_m(i)   = cross entropy of q_m[i] to the label, or to the mean of all others' predictions
        T_n(i)   = {m : ℓ_m(i) < ℓ_n(i) − δ}              better than n on sample i
        K_n[i]   = mean of q_m[i] over T_n(i); q_n[i] without any
        P_n(i)   = u/M + (1 − u) g_i / Σ g,  g_i = KL(K_n[i] ‖ q_n[i])
        learned: M samples drawn by P_n, `KL` at temperature T

    A small model with a class teaches it to a large one without, and learns other classes. The best client of
    a sample learns its own prediction. Samples on which a client lags are drawn more often, in one pass as
    long as the transfer set; with `uniform = 1` each is drawn once.

    A public code chooses the teacher by the mean loss of a batch, nearly always the same model; here each
    sample decides. Without labels the outlier loses: if most clients make the same error, they teach it to
    the one that is right.
    """

    name: ClassVar[str] = "comd"
    paper: ClassVar[str] = (
        "after Li et al., Unlock the Power: Competitive Distillation, 2023, arXiv 2311.08213"
    )
    source_note: ClassVar[str] = (
        "the paper tunes two multimodal language models on instructions; here N classifiers compete for each"
        " transfer sample"
    )

    judge: Literal["consensus", "labels"] = "consensus"
    """Reference of predictions: the `consensus` of all others, or the true `labels` of the transfer set,
    which the server then needs."""
    margin: Annotated[float, Field(ge=0)] = 0.1
    """δ in nats: least advantage of a teacher. 0 takes any better client; a large one is local training."""
    uniform: Annotated[float, Field(ge=0, le=1)] = 0.5
    """u: share of uniform draws; others prefer samples on which a client lags. 1 draws every sample once."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of targets and of the loss (teachers are chosen at 1)."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            receives=TAUGHT,
            guides="each",
            needs=frozenset({"transfer_labels"} if self.judge == "labels" else ()),
        )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return K `[N, M, C]`; the weights `[N, N]` are each teacher's share of a receiver's samples."""
        assert knowledge.logits is not None
        losses = sample_losses(knowledge.logits, knowledge.labels if self.judge == "labels" else None)
        q = softmax(knowledge.logits, self.temperature)
        targets, weights = np.empty_like(q), np.empty((len(q), len(q)))
        for receiver in range(len(q)):  # receiver by receiver: no N×N×M array
            better = losses < losses[receiver] - self.margin
            count = better.sum(axis=0)
            share = better / np.maximum(count, 1)
            share[receiver, count == 0] = 1.0
            targets[receiver] = np.einsum("mi,mic->ic", share.astype(np.float32), q)
            weights[receiver] = share.mean(axis=1)
        return Guidance(targets, weights)

    def apply(self, client: ClientView, guidance: Arrays) -> Distillation:
        """Distil samples drawn by P."""
        lag = row_kl(guidance["targets"], log_softmax(client.logits() / self.temperature))
        client.memory[DRAWN] = draw(lag, self.uniform, client.generator("hard-samples"))
        return self.targets_of(client, guidance)

    def targets_of(self, client: ClientView, guidance: Arrays) -> Distillation:
        """Return the drawn samples' targets, `[M, C]`, and their indices, `[M]`."""
        drawn = client.memory[DRAWN]
        return guidance["targets"][drawn], drawn


def draw(lag: np.ndarray, uniform: float, generator: np.random.Generator) -> np.ndarray:
    """Return M of M samples, ascending, by ``u/M + (1 − u) g_i / Σ g`` of lags g ≥ 0, `[M]` int64.

    The draw is systematic, from one uniform number: sample i comes ⌊M P(i)⌋ or ⌈M P(i)⌉ times.
    """
    samples, total = len(lag), lag.sum()
    if total == 0.0 or uniform == 1.0:
        return np.arange(samples)
    ends = np.cumsum(uniform / samples + (1.0 - uniform) * lag / total)
    found = np.searchsorted(ends / ends[-1], (np.arange(samples) + generator.random()) / samples)
    return np.minimum(found, samples - 1)
