"""FedMRL: a shared model's features are nested in the client's representation (arXiv 2406.00488)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from fedkd.errors import UserError
from fedkd.fusion import Capabilities, LocalObjective
from fedkd.fusion.auxiliary import OWN_NETWORK, AuxNetwork, Maker, joined
from fedkd.fusion.two_models.shared_model import SHARED_NETWORK, SharedModel
from fedkd.fusion.views import Arrays, ClientView, LocalBatch, LocalStep
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor, nn

PROJECTION = "projection"


@hyperparameters
class FedMRL(LocalObjective, SharedModel):
    """Combine features of a shared and an own model for both heads.

    ::

        r    = V [f_shared(x), f_own(x)] + b                              [F], V and b: the client's own
        loss = CE(head_own(r), y) + CE(head_shared(r[: F_s]), y)          one step moves all
        shared ← mean by samples of the shared models                     after every round
        prediction = head_own(r)

    F is the width of the own features, F_s ≤ F that of the shared model's. A new average changes r and the
    predictions at once. The authors' code collects aliases of one network, so its mean is the last client's;
    a library evaluates a fresh V in place of the trained one.
    """

    name: ClassVar[str] = "fedmrl"
    paper: ClassVar[str] = (
        "Yi et al., Federated Model Heterogeneous Matryoshka Representation Learning, NeurIPS 2024"
    )
    capabilities: ClassVar[Capabilities] = replace(
        SharedModel.capabilities, needs={"gradients", "features", "linear_head"}
    )

    evaluated_networks: ClassVar[tuple[str, ...]] = (OWN_NETWORK, SHARED_NETWORK, PROJECTION)

    def aux_networks(self) -> Mapping[str, AuxNetwork]:
        return {
            SHARED_NETWORK: AuxNetwork(lambda make: make.shared_model(with_features=True)),
            PROJECTION: AuxNetwork(_projection, start="client", sees="features"),
        }

    def local_step(self, client: ClientView, guidance: Arrays) -> LocalStep:
        """Return the cross entropies of both heads."""
        from fedkd.training import cross_entropy

        shared: Any = client.network(SHARED_NETWORK)
        projection = client.network(PROJECTION)

        def loss(batch: LocalBatch) -> tuple[Tensor, Tensor]:
            assert batch.features is not None
            model: Any = batch.model
            inner = shared.features(batch.inputs).flatten(1)
            r = representation(projection, inner, batch.features)
            answers = model.head(r)
            own = cross_entropy(answers, batch.labels)
            return own + cross_entropy(shared.head(r[:, : inner.shape[1]]), batch.labels), answers

        return loss

    def predictor(self, client: ClientView) -> nn.Module:
        """Return own model, shared model and V as one network."""

        def answer(x: Tensor, own: Any, shared: Any, projection: nn.Module) -> Tensor:
            features = [network.features(x).flatten(1) for network in (shared, own)]
            return own.head(representation(projection, *features))

        return joined(answer, client.network(), client.network(SHARED_NETWORK), client.network(PROJECTION))


def _projection(make: Maker) -> nn.Module:
    from torch import nn

    own, shared = make.width(), make.width(SHARED_NETWORK)
    if shared > own:
        raise UserError(
            f"must have features at most as wide as every client's, {own}, got {shared}",
            key="fusion.shared_model",
        )
    return nn.Linear(shared + own, own)


def representation(projection: nn.Module, shared: Tensor, own: Tensor) -> Tensor:
    """Return r `[B, F]` of features `[B, F_s]` and `[B, F]`."""
    import torch

    return projection(torch.cat([shared.float(), own.float()], dim=1).to(next(projection.parameters()).dtype))
