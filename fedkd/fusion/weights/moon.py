"""MOON: local training contrasts features with the average's and the previous own model's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, LocalObjective
from fedkd.fusion.views import Arrays, ClientView, LocalBatch, LocalStep
from fedkd.fusion.weights.averaging import AVERAGED, WeightAveraging
from fedkd.fusion.weights.parameters import PARAMETERS, pack, unpack
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor


@hyperparameters
class Moon(LocalObjective, WeightAveraging):
    """Average weights; locally, contrast features with the received and the previous model.

    ::

        loss = CE(z, y) − μ · mean_i log σ((cos(r_i, r_i^received) − cos(r_i, r_i^previous)) / τ)

    r are the penultimate features. The paper's classifier sits on a projection of two layers to 256
    features: `projection = 256` among a model's arguments.

    The received model and the client's previous one are frozen in evaluation mode, so that their statistics
    stay. In a client's first training the loss is the cross entropy alone.
    """

    name: ClassVar[str] = "moon"
    capabilities: ClassVar[Capabilities] = replace(
        AVERAGED, needs=AVERAGED.needs | {"features"}, keeps_models=1
    )
    paper: ClassVar[str] = "Li, He & Song, Model-Contrastive Federated Learning, CVPR 2021, arXiv 2103.16257"

    mu: Annotated[float, Field(ge=0)] = 5.0
    """μ: weight of the contrast. The paper tunes it for each data set, over 0.1, 1, 5 and 10; where accuracy
    falls behind that of μ = 0, which is FedAvg, go down to 0.001."""
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 0.5
    """τ: the lower, the more the samples count whose features are nearer to the previous model's."""

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return the weights, and store them as the next training's previous model."""
        own = pack(client.weights())
        client.memory |= own
        return own

    def local_step(self, client: ClientView, guidance: Arrays) -> LocalStep | None:
        """Return the cross entropy with the contrast; None in the client's first training."""
        if PARAMETERS not in client.memory:
            return None
        from torch.nn.functional import cosine_similarity, softplus

        from fedkd.training import cross_entropy

        received = client.weights()
        models: list[Any] = [client.frozen(received), client.frozen(unpack(client.memory, received))]

        def loss(batch: LocalBatch) -> Tensor:
            assert batch.features is not None
            near, far = (
                cosine_similarity(batch.features.float(), model.features(batch.inputs).flatten(1).float())
                for model in models
            )
            contrast = softplus((far - near) / self.temperature).mean()
            return cross_entropy(batch.logits, batch.labels) + self.mu * contrast

        return loss
