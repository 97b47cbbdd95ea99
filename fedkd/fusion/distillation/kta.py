"""KTA: a market of predictions, with similar and accurate clients as teachers.

Du, 2025, arXiv 2512.00841. The formula of the weights is as reconstructed here.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge, softmax
from fedkd.fusion.distillation.soft_labels import TemperedLabels
from fedkd.fusion.math.combine import combine
from fedkd.fusion.math.neighbour_weights import neighbour_weights
from fedkd.fusion.math.similarity import prediction_cosine, prediction_kl
from fedkd.plugins import hyperparameters


@hyperparameters
class KTA(TemperedLabels):
    """Weigh teachers by similarity of predictions and accuracy on the labelled transfer set.

    ::

        d_nm   = mean_i KL(q_n[i] ‖ q_m[i])          the graph, in prediction space
        a_m    = share of transfer samples that client m classifies correctly
        W_nm   ∝ exp(−β d_nm + γ a_m)                over n's k nearest others and n itself
        K_n[i] = Σ_m W_nm q_m[i]                     soft targets, for client n alone

    A round trains every client on its own labels, then distils its teacher ensemble `K_n`. The true labels
    of the transfer set never leave the server.

    β = 0 ranks by accuracy alone and γ = 0 by similarity alone (KnFu with `divergence = "prediction_kl"`).
    With both 0 and no `neighbours` all targets are the mean of all probabilities.
    """

    name: ClassVar[str] = "kta"
    capabilities: ClassVar[Capabilities] = Capabilities(
        guides="each", over_graph="each", needs={"transfer_labels"}, mixes=True
    )
    paper: ClassVar[str] = "Du, Prediction-space knowledge markets, arXiv 2512.00841, 2025"

    beta: Annotated[float, Field(ge=0)] = 1.0
    """β: how sharply distance costs weight; start at 1 for `kl` (several nats), at 10 for `cosine`."""
    gamma: Annotated[float, Field(ge=0)] = 5.0
    """γ: how sharply errors cost weight: at 5, twenty points of accuracy are worth a factor e. Raise it for
    broken or badly trained clients."""
    neighbours: Annotated[int, Field(ge=0)] | None = None
    """Number of nearest others in the graph; absent: all. Start at the size of a group of similar clients."""
    divergence: Literal["kl", "cosine"] = "kl"
    """Distance of predictions: mean `kl`, receiver first, or 1 − `cosine`, symmetric and at most 1."""
    epsilon: Annotated[float, Field(ge=1e-12, le=1)] = 1e-6
    """Smoothing in `kl`: it bounds distances by about −log ε. Raise it if single errors decide everything."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of predictions and loss. Above 1 clients come closer together, so raise β with it."""

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return personal soft targets `[N, M, C]` and their weights `[N, N]`."""
        assert knowledge.logits is not None and knowledge.labels is not None
        q = softmax(knowledge.logits, self.temperature)
        d = prediction_kl(q, self.epsilon) if self.divergence == "kl" else prediction_cosine(q)
        accuracy = (q.argmax(axis=-1) == knowledge.labels).mean(axis=1)
        prior = self.gamma * accuracy
        weights = neighbour_weights(d, self.beta, neighbours=self.neighbours, log_prior=prior)
        return Guidance(combine(weights, q), weights, distances=d, mixed=q)
