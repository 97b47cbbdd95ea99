"""What a client does where the server averages models: it sends its weights, whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.kinds import Kind
from fedkd.fusion.strategy import FusionStrategy, Guidance, Knowledge
from fedkd.fusion.views import Arrays, ClientView


@dataclass(frozen=True)
class WeightExchange(FusionStrategy):
    """Send the model; there is no guidance, because the next model takes the place of the last.

    Args:
        name: The server's half, as a scenario names it: ``"flwr:FedAvg"``.
    """

    name: str
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="weights",
        needs={"gradients", "weights", "one_architecture"},
        kinds={},
        by_flower=True,
        brings_model=True,
        uses_transfer_set=False,
    )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Raise: one of Flower's strategies averages."""
        raise NotImplementedError(f"'{self.name}' averages on a server of Flower's")

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return the client's parameters and buffers, by the names that its model gives them."""
        return client.weights()

    def kinds_of(self, upload: Arrays) -> dict[str, Kind]:
        """Return what each array is; the names are the model's, so its type has to say."""
        return {
            name: Kind.WEIGHTS if np.issubdtype(values.dtype, np.floating) else Kind.COUNTERS
            for name, values in upload.items()
        }
