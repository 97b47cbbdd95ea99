"""KT-pFL: learned weights of clients for each other (Zhang et al., NeurIPS 2021, arXiv 2111.02862)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge, softmax
from fedkd.fusion.distillation.soft_labels import TemperedLabels
from fedkd.fusion.math.client_index import enrol
from fedkd.fusion.math.combine import combine
from fedkd.fusion.math.neighbour_weights import effectiveness
from fedkd.fusion.math.similarity import gram
from fedkd.plugins import hyperparameters


@hyperparameters
class KTpFL(TemperedLabels):
    """Learn knowledge coefficients between clients; distil each client's mixture.

    ::

        q_n[i] = softmax(z_n(x_i) / T)
        L(c_n) = MSE(q_n, Σ_m c_nm q_m) + ρ · MSE(c_n, 1/N)        c starts at 1/N
        c_n    ← softmax of (c_n after a gradient step on L) / τ
        t_n[i] = Σ_m c_nm q_m[i]                                  learned by KL at temperature T

    Clients gain weight if their predictions help to reconstruct the receiver's; ρ keeps all near the mean.
    The step on ρ's term is implicit, so a large ρ means uniform weights. The authors' code has τ = 0.2. With
    τ = 1, the printed formula, weights differ at most by a factor e. Absent clients keep their coefficients;
    new ones start with the mean weight.
    """

    name: ClassVar[str] = "ktpfl"
    capabilities: ClassVar[Capabilities] = Capabilities(guides="each", over_graph="each", mixes=True)
    paper: ClassVar[str] = "Zhang et al., Parameterized Knowledge Transfer for Personalized FL, NeurIPS 2021"

    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 10.0
    """T of predictions and loss; 10 in the paper, which makes c uniform: 1 to 3 personalises more."""
    rho: Annotated[float, Field(ge=0)] = 0.7
    """ρ: how strongly coefficients are held at 1/N; 0.7 in the paper, which with T = 10 is nearly uniform. 0
    to 0.1 lets clients differ; very large is the plain mean of probabilities."""
    lr: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    """Step size of c. The gradient of an MSE of probabilities is small, about 0.1 at T = 1 and 0.001 at
    T = 10: try 1 to 100, more with a large T, and watch the effective number of neighbours."""
    coefficient_temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.2
    """τ of the softmax over coefficients: below 0.2 few teachers remain, at 1 it stays near uniform."""

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return personal targets `[N, M, C]` with the coefficients `[N, N]`."""
        assert knowledge.logits is not None
        q = softmax(knowledge.logits, self.temperature)
        roster = enrol(memory, knowledge.clients)
        everyone, known = len(roster.clients), len(roster.known)
        coefficients = np.full((everyone, everyone), 1.0 / everyone)  # those of new clients
        if known:
            coefficients[np.ix_(roster.known, roster.known)] = memory["coefficients"] * (known / everyone)
        among_present = np.ix_(roster.present, roster.present)
        c = coefficients[among_present]
        mass = c.sum(axis=1, keepdims=True)
        c = np.divide(c, mass, out=np.full_like(c, 1.0 / len(c)), where=mass > 0)
        c = self._improve(c, gram(q), q[0].size)
        coefficients[among_present] = mass * c
        kept = {"clients": roster.clients, "coefficients": coefficients}
        return Guidance(combine(c, q), c, kept, mixed=q)

    def _improve(self, c: np.ndarray, products: np.ndarray, elements: int) -> np.ndarray:
        stepped = step(c, products, elements, rho=self.rho, lr=self.lr)
        return effectiveness(-stepped, 1.0 / self.coefficient_temperature)  # softmax(stepped / τ)


def mse_gradient(c: np.ndarray, products: np.ndarray, elements: int) -> np.ndarray:
    """Return the gradient of ``MSE(q_n, Σ_m c_nm q_m)`` in each row of c, `[N, N]`, by inner products."""
    return 2.0 / elements * (c @ products - products)


def step(c: np.ndarray, products: np.ndarray, elements: int, *, rho: float, lr: float) -> np.ndarray:
    """Return c after one step on ``MSE(q_n, Σ_m c_nm q_m) + ρ · MSE(c_n, 1/N)``, before the softmax.

    The second term is implicit: ``c⁺ = c − lr · (mse_gradient(c) + 2ρ/N · (c⁺ − 1/N))``.
    """
    clients = len(c)
    keep = 1.0 / (1.0 + 2.0 * lr * rho / clients)
    return keep * (c - lr * mse_gradient(c, products, elements)) + (1.0 - keep) / clients
