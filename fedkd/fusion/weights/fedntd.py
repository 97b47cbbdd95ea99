"""FedNTD: local training preserves the received model's predictions of not-true classes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from fedkd.fusion import Capabilities, LocalObjective
from fedkd.fusion.views import Arrays, ClientView, LocalBatch, LocalStep
from fedkd.fusion.weights.averaging import AVERAGED, WeightAveraging
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor


@hyperparameters
class FedNTD(LocalObjective, WeightAveraging):
    """Average weights; locally, distil the received model's predictions of not-true classes.

    ::

        loss = CE(z, y) + β · τ² · mean_i KL(softmax(ẑ_i^received / τ) ‖ softmax(ẑ_i / τ))

    ẑ are the logits without the true class, which is dropped before the softmax and left to the labels. The
    received model is frozen and in evaluation mode.
    """

    name: ClassVar[str] = "fedntd"
    capabilities: ClassVar[Capabilities] = replace(AVERAGED, needs=AVERAGED.needs | {"three_classes"})
    paper: ClassVar[str] = (
        "Lee et al., Preservation of the Global Knowledge by Not-True Distillation in Federated Learning,"
        " NeurIPS 2022, arXiv 2106.03097"
    )

    beta: Annotated[float, Field(ge=0)] = 1.0
    """β: weight of the distillation beside the cross entropy; 0 is FedAvg."""
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 1.0
    """τ: softness of both sides. 1 in the paper's experiments; 3 lets rarely answered classes count too."""

    def local_step(self, client: ClientView, guidance: Arrays) -> LocalStep:
        """Return the cross entropy plus the distillation of the initial weights."""
        from fedkd.training import cross_entropy, kd_kl

        received = client.frozen(client.weights())

        def loss(batch: LocalBatch) -> Tensor:
            answers = not_true(received(batch.inputs).float(), batch.labels) / self.temperature
            own = not_true(batch.logits, batch.labels)
            preserved = kd_kl(own, answers.softmax(dim=1), self.temperature)
            return cross_entropy(batch.logits, batch.labels) + self.beta * preserved

        return loss


def not_true(logits: Tensor, labels: Tensor) -> Tensor:
    """Return logits `[B, C]` without those of the labels `[B]`: `[B, C − 1]`."""
    import torch

    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    return logits.gather(1, others + (others >= labels[:, None]))
