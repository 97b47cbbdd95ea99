"""FML: a private model and a shared one teach each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from fedkd.fusion.local_objective import LocalObjective
from fedkd.fusion.two_models.shared_model import SHARED_NETWORK, SharedModel
from fedkd.fusion.views import Arrays, ClientView, LocalBatch, LocalStep
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor


@hyperparameters
class FML(LocalObjective, SharedModel):
    """Train an own model z and a shared model g with mutual distillation.

    ::

        L = α CE(z, y) + (1 − α) KL(softmax g ‖ softmax z)     trains z alone
          + β CE(g, y) + (1 − β) KL(softmax z ‖ softmax g)     trains g alone
        g ← Σ_n S_n g_n / Σ_n S_n                              after every round

    Evaluations use z, which fusion changes in the next training. A library's α = β = 1 turns distillation off
    (local training, and FedAvg of g). Its KL is also divided by C, and its loss trains both models.
    """

    name: ClassVar[str] = "fml"
    paper: ClassVar[str] = "Shen et al., Federated Mutual Learning, 2020, arXiv 2006.16765"

    own_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """α: weight of the labels for the own model; 0.5 is even, 1 is training alone."""
    shared_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """β: weight of the labels for the shared model; 1 is FedAvg of it."""

    def local_step(self, client: ClientView, guidance: Arrays) -> LocalStep:
        """Return L."""
        from fedkd.training import cross_entropy, kd_kl

        shared = client.network(SHARED_NETWORK)

        def loss(batch: LocalBatch) -> Tensor:
            own, other = batch.logits.float(), shared(batch.inputs).float()
            taught = kd_kl(own, other.detach().softmax(dim=1), 1.0)
            teaches = kd_kl(other, own.detach().softmax(dim=1), 1.0)
            of_own = self.own_weight * cross_entropy(own, batch.labels) + (1 - self.own_weight) * taught
            of_other = self.shared_weight * cross_entropy(other, batch.labels)
            return of_own + of_other + (1 - self.shared_weight) * teaches

        return loss
