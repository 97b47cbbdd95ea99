"""Ditto: a personal model is trained beside the averaged one and kept near it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from fedkd.fusion.two_models.personal_model import PERSONAL, PersonalModel, squared_distance
from fedkd.fusion.views import Arrays, ClientView, LocalBatch, LocalStep
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor


@hyperparameters
class Ditto(PersonalModel):
    """FedAvg for w; each client also trains a personal v, regularised towards the received w.

    ::

        w   ← w − η ∇CE(w)                                  averaged over clients after every round
        v_n ← v_n − η (∇CE(v_n) + λ (v_n − w_received))     never sent

    Both take their steps on the same batches, so a round costs two trainings. The formulas are plain SGD;
    other optimisers use the same gradients. Evaluations use v, which fusion changes in the next training.
    `accuracy_personal` and `accuracy_shared` record both. A library's default of λ = 0 makes v a local
    baseline.
    """

    name: ClassVar[str] = "ditto"
    paper: ClassVar[str] = (
        "Li et al., Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021, arXiv"
        " 2012.04221"
    )

    strength: Annotated[float, Field(ge=0)] = 1.0
    """λ: how hard w pulls; 1 in the paper, which also chooses among 0.1, 1 and 2. 0 is training alone, and
    the larger the nearer to FedAvg."""
    inference: Literal["personal", "shared"] = "personal"
    """Evaluated model: v, or w (the client's own before fusion, the average after)."""

    def local_step(self, client: ClientView, guidance: Arrays) -> LocalStep:
        """Return ``CE(w) + CE(v) + λ/2 ‖v − w_received‖²``; each term trains its own network."""
        from fedkd.training import cross_entropy

        personal = client.network(PERSONAL)
        received = [parameter.detach().clone() for parameter in client.network().parameters()]

        def loss(batch: LocalBatch) -> tuple[Tensor, Tensor]:
            answers = personal(batch.inputs)
            value = cross_entropy(batch.logits, batch.labels) + cross_entropy(answers, batch.labels)
            value = value + 0.5 * self.strength * squared_distance(personal, received)
            return value, answers if self.inference == "personal" else batch.logits

        return loss
