"""pFedMe: personal models in the Moreau envelope of the clients' losses (arXiv 2006.08848)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import AuxNetwork, Capabilities, Guidance, Knowledge
from fedkd.fusion.two_models.personal_model import PERSONAL, PersonalModel, squared_distance
from fedkd.fusion.views import Arrays, ClientView, LocalBatch, LocalStep
from fedkd.fusion.weights.averaging import AVERAGED
from fedkd.fusion.weights.parameters import PARAMETERS
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor


@hyperparameters
class PFedMe(PersonalModel):
    """Average w; each client finds a personal θ near w anew for every batch.

    ::

        θ   ← θ − η_p (∇CE(θ) + λ (θ − w_n))      K times on the same batch
        w_n ← w_n − η λ (w_n − θ)                 λ (w − θ) is the gradient of the envelope
        w   ← (1 − β) w + β Σ_n S_n w_n / Σ_n S_n

    The second line is a step of plain SGD at `training.lr`: other optimisers and momentum are refused. The
    paper has lr 0.005 and batches of 20. θ has its own plain SGD, begins every training at the received w, as
    in the authors' code, and never leaves the client. Means are weighted by samples. Only clients of the
    round train in it. The authors train all clients in every round, and have an unpublished weight decay of
    1e-3.
    """

    name: ClassVar[str] = "pfedme"
    capabilities: ClassVar[Capabilities] = replace(AVERAGED, needs=AVERAGED.needs | {"plain_sgd"})
    paper: ClassVar[str] = (
        "Dinh et al., Personalized Federated Learning with Moreau Envelopes, NeurIPS 2020, arXiv 2006.08848"
    )

    strength: Annotated[float, Field(gt=0)] = 15.0
    """λ: how near θ is held to w; 15 in the paper. Keep η_p λ below 2; w moves by ηλ of the way a step."""
    personal_steps: Annotated[int, Field(ge=1)] = 5
    """K: steps of θ a batch; 5 in the paper. A round costs K trainings."""
    personal_lr: Annotated[float, Field(gt=0)] = 0.05
    """η_p: learning rate of θ; 0.1 in the paper, with which a LeNet diverged: η_p times λ and the loss's
    curvature has to stay below 2."""
    server_share: Annotated[float, Field(gt=0, le=2)] = 1.0
    """β: how far the server goes to the clients' mean; 1 in most of the paper's runs and in round 1."""
    inference: Literal["personal", "shared"] = "personal"
    """Model in evaluations: θ of the last training, or w (own after training, average after guidance)."""

    def aux_networks(self) -> Mapping[str, AuxNetwork]:
        """Return θ, which the optimiser leaves alone."""
        return {PERSONAL: AuxNetwork(lambda make: make.like_own(), trained=False, passes=self.personal_steps)}

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return w, shared by all, and stored if the server mixes it with the mean."""
        guidance = super().fuse(knowledge, memory)
        if self.server_share == 1.0:
            return guidance
        mean = dict(guidance.shared)
        if memory:
            before = memory[PARAMETERS].astype(np.float64)
            moved = before + self.server_share * (mean[PARAMETERS] - before)
            mean[PARAMETERS] = moved.astype(np.float32)
        return Guidance(targets=None, shared=mean, memory=mean)

    def local_step(self, client: ClientView, guidance: Arrays) -> LocalStep:
        """Return ``CE(θ) + λ/2 ‖w − θ‖²`` after the steps of θ; its gradient moves w towards θ."""
        import torch

        from fedkd.training import cross_entropy

        client.load_weights(client.weights(), PERSONAL)
        personal = client.network(PERSONAL).train()
        theta = [parameter for parameter in personal.parameters() if parameter.requires_grad]

        def loss(batch: LocalBatch) -> tuple[Tensor, Tensor]:
            own = [parameter for parameter in batch.model.parameters() if parameter.requires_grad]
            for _ in range(self.personal_steps):
                answers = personal(batch.inputs)
                value = cross_entropy(answers, batch.labels)
                slopes = torch.autograd.grad(value, theta, materialize_grads=True)
                with torch.no_grad():
                    for parameter, w, slope in zip(theta, own, slopes, strict=True):
                        parameter.sub_(self.personal_lr * (slope + self.strength * (parameter - w)))
            away = squared_distance(batch.model, [parameter.detach() for parameter in personal.parameters()])
            value = value.detach() + 0.5 * self.strength * away
            return value, answers if self.inference == "personal" else batch.logits

        return loss
