"""Personal models: FedAvg for the client's model w, beside a personal model for predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from fedkd.fusion.auxiliary import OWN_NETWORK, AuxNetwork, AuxNetworks
from fedkd.fusion.local_objective import LocalObjective
from fedkd.fusion.views import ClientView
from fedkd.fusion.weights.averaging import WeightAveraging
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor, nn

PERSONAL = "personal"
"""The network that never leaves the client, and its name among the measured models."""
SHARED_KEY = "shared"
"""The averaged model among the measured ones."""


@hyperparameters
class PersonalModel(LocalObjective, AuxNetworks, WeightAveraging):
    """Base of strategies whose clients train a personal model beside the averaged one.

    Evaluations use the personal model unless the hyper-parameter `inference` is ``"shared"``; the accuracy of
    both is recorded.
    """

    eval_models: ClassVar[tuple[str, ...]] = (PERSONAL, SHARED_KEY)
    evaluated_networks: ClassVar[tuple[str, ...]] = (OWN_NETWORK, PERSONAL)

    if TYPE_CHECKING:

        @property
        def inference(self) -> str:
            """Hyper-parameter: ``"shared"``, or a name of the personal model."""

    def aux_networks(self) -> Mapping[str, AuxNetwork]:
        """Return the personal model, with the initial weights of w."""
        return {PERSONAL: AuxNetwork(lambda make: make.like_own())}

    def predictor(self, client: ClientView) -> nn.Module | None:
        """Return the personal model, unless evaluations use w."""
        return None if self.inference == SHARED_KEY else self.eval_model(client, PERSONAL)

    @property
    def answering_model(self) -> str:
        """`personal` or `shared`."""
        return SHARED_KEY if self.inference == SHARED_KEY else PERSONAL

    def eval_model(self, client: ClientView, name: str) -> nn.Module:
        """Return the personal model or w."""
        return client.network(PERSONAL if name == PERSONAL else OWN_NETWORK)


def squared_distance(network: nn.Module, others: list[Tensor]) -> Tensor:
    """Return ``‖v − w‖²`` over all parameters of a network v; `others` is w, in their order."""
    pairs = zip(network.parameters(), others, strict=True)
    squares: Tensor = sum((own - other).square().sum() for own, other in pairs)  # type: ignore[assignment]
    return squares
