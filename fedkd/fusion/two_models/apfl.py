"""APFL: a personal model is mixed with the average, weight by weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion.two_models.personal_model import PERSONAL, PersonalModel
from fedkd.fusion.views import Arrays, ClientView, LocalBatch, LocalStep
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor, nn

SHARE = "share"


@hyperparameters
class APFL(PersonalModel):
    """FedAvg for w; each client mixes w with its own model v for predictions.

    ::

        v̄ = a v + (1 − a) w                        every weight; statistics of normalisation are those of v̄
        w ← w − η ∇CE(w)                           averaged over clients after every round
        v ← v − η a ∇CE(v̄)                         never sent
        a ← clip(a − η_a ⟨v − w, ∇CE(v̄)⟩, 0, 1)    once a round, on its first batch, if η_a > 0

    Both take their steps on the same batches. The authors' framework mixes outputs instead of weights, and
    adds 0.02a to the gradient of a. A library overwrites v by v̄ after every round and begins with a = 1.
    """

    name: ClassVar[str] = "apfl"
    paper: ClassVar[str] = "Deng et al., Adaptive Personalized Federated Learning, 2020, arXiv 2003.13461"

    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """a: share of the client's own model in the mix, at first. 1 is training alone, 0 is FedAvg."""
    share_lr: Annotated[float, Field(ge=0)] = 0.0
    """η_a: step of a in a round; 0 keeps it. The paper's learning rate of training moves it little in a few
    rounds: try 0.01 to 0.1."""
    inference: Literal["mixed", "shared"] = "mixed"
    """Evaluated model: v̄, or w (the client's own before fusion, the average after)."""

    def share_of(self, client: ClientView) -> float:
        return float(client.memory.get(SHARE, self.share))

    def local_step(self, client: ClientView, guidance: Arrays) -> LocalStep:
        """Return ``CE(w) + CE(v̄)``; the second term trains v alone."""
        import torch
        from torch.func import functional_call

        from fedkd.training import cross_entropy

        personal, share, memory = client.network(PERSONAL), self.share_of(client), client.memory
        moves = self.share_lr > 0

        def loss(batch: LocalBatch) -> tuple[Tensor, Tensor]:
            nonlocal moves
            shared: dict[str, Any] = dict(batch.model.named_parameters())
            ends = {n: (v, shared[n].detach()) for n, v in personal.named_parameters() if v.requires_grad}
            mixed = {name: share * v + (1 - share) * w for name, (v, w) in ends.items()}
            answers = functional_call(personal, mixed, (batch.inputs,))
            own = cross_entropy(answers, batch.labels)
            if moves and own.requires_grad:
                moves = False
                among = list(mixed.values())
                slopes = torch.autograd.grad(own, among, retain_graph=True, materialize_grads=True)
                pairs = zip(ends.values(), slopes, strict=True)
                slope = float(sum(((v - w).detach() * s).sum() for (v, w), s in pairs))
                memory[SHARE] = np.array(np.clip(share - self.share_lr * slope, 0, 1), dtype=np.float64)
            value = cross_entropy(batch.logits, batch.labels) + own
            return value, answers if self.inference == "mixed" else batch.logits

        return loss

    def eval_model(self, client: ClientView, name: str) -> nn.Module:
        """Return a network with the weights v̄, or w."""
        if name == "shared":
            return client.network()
        own, shared, share = client.weights(PERSONAL), client.weights(), self.share_of(client)
        mixed = {name: share * own[name] + (1 - share) * shared[name] for name in client.trainable()}
        return client.frozen(own | mixed, PERSONAL)
