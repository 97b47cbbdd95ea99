"""Fed-ET: small clients train a larger server model, which teaches them (arXiv 2204.12703)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge
from fedkd.fusion.distillation.server_model import ServerTeacher
from fedkd.fusion.math.probabilities import finite_logits, softmax
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor


@hyperparameters
class FedET(ServerTeacher):
    """Distil the clients' certainty-weighted consensus into a server model, which teaches them.

    ::

        α_n(x)   ∝ Var_c z_n(x)                            a sure client's logits vary over the classes
        s(x)     = Σ_n α_n(x) z_n(x),   y(x) = argmax s(x)                     the consensus
        s_div(x) = Σ_n α_n(x) z_n(x) over n with argmax z_n(x) ≠ y(x)          clients that disagree
        server   ← minimise CE(z(x), y(x)) + λ · KL(softmax(s_div(x)) ‖ softmax(z(x)))

    α is normalised over the clients of its sum; a sample without disagreement lacks the second term. The
    paper's clients send small models, which the server runs and averages, and receive its last layers. Here
    they send logits, and distil the server's logits on the transfer set. So architectures need no common
    layer, and message sizes do not depend on the model.
    """

    name: ClassVar[str] = "fedet"
    capabilities: ClassVar[Capabilities] = replace(
        ServerTeacher.capabilities, guides="all_alike", averages="logits"
    )
    paper: ClassVar[str] = (
        "Cho et al., Heterogeneous Ensemble Knowledge Transfer for Training Large Models in Federated"
        " Learning, IJCAI 2022"
    )

    diversity: Annotated[float, Field(ge=0)] = 0.05
    """λ: weight of clients that disagree with the consensus; 0.05 in the authors' experiments. Raise it for
    skewed clients, where a minority may be the one that has the class."""

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the trained server's logits, `[M, C]`, shared by all; its weights are the memory."""
        assert knowledge.logits is not None
        targets = consensus_and_diversity(knowledge.logits)
        logits, kept = self._taught(knowledge, memory, targets, self.server_loss)
        return Guidance(targets=logits, memory=kept)

    def server_loss(self, logits: Tensor, consensus: Tensor, diversity: Tensor) -> Tensor:
        """Return the cross entropy to labels `[B]` plus λ · KL to the diversity ensemble `[B, C]`."""
        from fedkd.training import cross_entropy, kd_kl

        return cross_entropy(logits, consensus) + self.diversity * kd_kl(logits, diversity, 1.0)


def consensus_and_diversity(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return consensus labels `[M]` int64 and the dissenters' probabilities `[M, C]` of logits `[N, M, C]`.

    Rows without dissent are all zeros: as the target of a KL they add nothing.
    """
    z = finite_logits(logits)
    certainty = z.var(axis=-1, dtype=np.float64)
    certainty[:, certainty.max(axis=0) == 0.0] = 1.0  # all logits equal: equal certainty
    consensus = _weighted_mean(certainty, z).argmax(axis=-1)
    certainty *= z.argmax(axis=-1) != consensus
    disagreed = certainty.max(axis=0) > 0.0
    diversity = np.zeros(z.shape[1:], dtype=np.float32)
    diversity[disagreed] = softmax(_weighted_mean(certainty[:, disagreed], z[:, disagreed]))
    return consensus, diversity


def _weighted_mean(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return ``Σ_n w[n, i] v[n, i] / Σ_n w[n, i]``, `[M, C]` float64."""
    share = weights / weights.sum(axis=0)
    return np.einsum("nm,nmc->mc", share, values)
