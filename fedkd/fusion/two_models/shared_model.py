"""A small model that all clients share, beside their private models."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from fedkd.fusion import AuxNetwork, AuxNetworks, Capabilities
from fedkd.fusion.weights.averaging import AVERAGED, AveragedNetwork
from fedkd.plugins import hyperparameters

SHARED_NETWORK = "shared"
"""Name of the exchanged network."""


@hyperparameters
class SharedModel(AuxNetworks, AveragedNetwork):
    """Base of strategies with an averaged small model, trained beside each client's own.

    Own models may have any architecture and stay private. The small model begins with the same weights on all
    clients.
    """

    capabilities: ClassVar[Capabilities] = replace(
        AVERAGED,
        sends="the weights of a small shared model",
        needs={"gradients"},
        reach="all clients, the same, with their next message",
        shares_model=False,
    )

    exchanged_network: ClassVar[str] = SHARED_NETWORK

    shared_model: str = "mlp"
    """The small model: a zoo name or `"pkg.mod:factory"`. The default takes samples of any shape; for images
    a `cnn` or `lenet` is the better one. Each round brings it up and down."""
    shared_args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the small model. An `mlp` without any is one hidden layer of 64."""

    @property
    def shared_arguments(self) -> dict[str, Any]:
        """The small model's arguments, with its default ones."""
        return dict(self.shared_args) or ({"hidden": [64]} if self.shared_model == "mlp" else {})

    def aux_networks(self) -> Mapping[str, AuxNetwork]:
        """Return the small model."""
        return {SHARED_NETWORK: AuxNetwork(lambda make: make.shared_model())}
