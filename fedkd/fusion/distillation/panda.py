"""`panda`: learn from clients with predictions shifted in the same direction.

After Zhong et al., PanDa, arXiv 2208.10160, where the similarity of two tasks multiplies the distillation
loss. Here the shift of a client's mean prediction stands for its task.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge, softmax
from fedkd.fusion.distillation.shift import KnowsStart, shift_cosine
from fedkd.fusion.math.combine import combine
from fedkd.plugins import hyperparameters


@hyperparameters
class Panda(KnowsStart):
    """Distil every other client's predictions, weighted by the similarity of their shifts.

    ::

        r_n[i] = softmax of the predictions before any training
        v_n    = mean_i (softmax z_n(x_i) − r_n[i])            where client n has moved
        s_nm   = max(0, cos(v_n, v_m))
        W_nm   = s_nm / N for m ≠ n, and W_nn = 1 − Σ_m W_nm
        K_n[i] = Σ_m W_nm softmax(z_m(x_i) / T)                for client n alone

    It is the paper's sum of losses, ``1/N Σ_m s_nm KD(z_n ← q_m)``: a dissimilar client's weight goes to the
    client's own predictions. A factor on the whole loss would have no effect under Adam.

    A client without similar ones learns from itself, as under KnFu with a large β. A weight is at most 1/N,
    so equal clients get the plain mean. Like KnFu's distance, the similarity compares label mixes, not single
    samples.
    """

    name: ClassVar[str] = "panda"
    paper: ClassVar[str] = "after Zhong et al., PanDa, arXiv 2208.10160, 2022"

    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of targets and of the loss (shifts are taken at 1). Above 1 it teaches more of unlikely classes."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return replace(
            super().capabilities, sends="logits and a mean prediction", guides="each", needs={"gradients"}
        )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return personal targets `[N, M, C]` and their weights `[N, N]`."""
        assert knowledge.logits is not None
        weights = similarity_weights(shift_cosine(self.shift_of(knowledge)))
        q = softmax(knowledge.logits, self.temperature)
        return Guidance(combine(weights, q), weights, mixed=q)


def similarity_weights(cosine: np.ndarray) -> np.ndarray:
    """Return ``max(0, cos_nm) / N`` for other clients, and the rest to 1 on the diagonal, `[N, N]`."""
    clients = len(cosine)
    weights = np.maximum(cosine, 0.0) / clients
    np.fill_diagonal(weights, 0.0)
    np.fill_diagonal(weights, 1.0 - weights.sum(axis=1))
    return weights
