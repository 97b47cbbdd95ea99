"""Fed-ET: small clients train a larger model on the server, which then teaches them.

Y. J. Cho, A. Manoel, G. Joshi, R. Sim and D. Dimitriadis, "Heterogeneous Ensemble Knowledge Transfer for
Training Large Models in Federated Learning", IJCAI 2022, arXiv 2204.12703.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedkd.fusion.client_half import Need
from fedkd.fusion.parameters import pack
from fedkd.fusion.probabilities import finite_logits, softmax
from fedkd.fusion.server_model import trained_on
from fedkd.fusion.soft_labels import TeacherLogits
from fedkd.fusion.strategy import Guidance, Guided, Knowledge
from fedkd.hyperparameters import STRICT

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, config=STRICT)
class FedET(TeacherLogits):
    """Distil a consensus of the clients, weighted by their own certainty, into a server model.

    ::

        α_n(x)   ∝ Var_c z_n(x)                            a sure client's logits vary over the classes
        s(x)     = Σ_n α_n(x) z_n(x),   y(x) = argmax s(x)                     the consensus
        s_div(x) = Σ_n α_n(x) z_n(x) over n with argmax z_n(x) ≠ y(x)          those who disagree
        server   ← minimise CE(z(x), y(x)) + λ · KL(softmax(s_div(x)) ‖ softmax(z(x)))

    α is normalised over whom its sum runs over; a sample without disagreement has no second term. In the
    paper clients send their small models, which the server runs itself and averages, and get its last layers
    back. Here they send the logits that those models would give, and learn the server model's logits on the
    transfer set: nobody needs a layer in common with anybody, and a message does not grow with the model.
    """

    name: ClassVar[str] = "fedet"
    guides: ClassVar[Guided] = "all_alike"
    paper: ClassVar[str] = (
        "Cho et al., Heterogeneous Ensemble Knowledge Transfer for Training Large Models in Federated"
        " Learning, IJCAI 2022"
    )
    needs: ClassVar[frozenset[Need]] = frozenset({"server"})

    server_model: str = "resnet20"
    """The server's model: a zoo name or `"pkg.mod:factory"`. Larger than the clients', and fit for the data:
    `mlp` where samples are not images."""
    server_args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the server's model, e.g. its width; they multiply what the server can learn and
    what a round costs."""
    diversity: Annotated[float, Field(ge=0)] = 0.05
    """λ: weight of those who disagree with the consensus; 0.05 in the authors' experiments. Raise it if
    clients are skewed, where a minority may be the one that has the class."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of what clients learn from the server. Above 1 it also teaches how the server ranks the other
    classes."""
    server_epochs: Annotated[int, Field(ge=0)] = 10
    """Passes over the transfer set per round. The server model lives on from round to round; until it has
    learned something it holds its clients back, so raise this for a small transfer set or few rounds: aim at
    a hundred steps a round."""
    server_lr: Annotated[float, Field(gt=0)] = 1e-3
    """Initial learning rate of the server's Adam, which falls to 0 along a cosine in each round."""
    server_batch_size: Annotated[int, Field(gt=0)] = 64
    """Samples of one step on the server; smaller batches make more steps of a small transfer set."""

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Train the server model and return its logits, `[M, C]`, shared by all; its weights are the
        memory."""
        assert knowledge.logits is not None and knowledge.server is not None
        server = knowledge.server
        consensus, diversity = consensus_and_diversity(knowledge.logits)
        architecture = server.architecture(self.server_model, self.server_args)
        weights = trained_on(
            server,
            architecture,
            memory,
            (consensus, diversity),
            self.server_loss,
            epochs=self.server_epochs,
            batch_size=self.server_batch_size,
            lr=self.server_lr,
        )
        return Guidance(targets=server.logits(architecture, weights), memory=pack(weights))

    def server_loss(self, logits: Tensor, consensus: Tensor, diversity: Tensor) -> Tensor:
        """Return the cross entropy to consensus labels `[B]` plus λ · KL to the diversity ensemble `[B,
        C]`."""
        from fedkd.training.losses import cross_entropy, kd_kl

        return cross_entropy(logits, consensus) + self.diversity * kd_kl(logits, diversity, 1.0)


def consensus_and_diversity(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the clients' consensus labels `[M]` int64 and the probabilities of those who disagree, `[M, C]`.

    A row of the latter is all zeros where nobody disagrees: as the target of a KL it adds nothing.

    Args:
        logits: `[N, M, C]`.
    """
    z = finite_logits(logits)
    certainty = z.var(axis=-1, dtype=np.float64)
    certainty[:, certainty.max(axis=0) == 0.0] = 1.0  # all logits equal: nobody is surer than anybody
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
