"""What a client does where the server averages models: it sends its weights, whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedkd.fusion.client_half import ClientHalf, Need
from fedkd.fusion.kinds import Kind
from fedkd.fusion.views import Arrays, ClientView


@dataclass(frozen=True)
class WeightExchange(ClientHalf):
    """Send the model; there is no guidance, because the next model takes the place of the last.

    Args:
        name: The server's half, as a scenario names it: ``"flwr:FedAvg"``.
    """

    name: str
    sends: ClassVar[str] = "weights"
    needs: ClassVar[frozenset[Need]] = frozenset({"gradients", "weights", "one_architecture"})
    brings_model: ClassVar[bool] = True
    uses_transfer_set: ClassVar[bool] = False

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return the client's parameters and buffers, by the names that its model gives them."""
        return client.weights()

    def kinds_of(self, upload: Arrays) -> dict[str, Kind]:
        """Return what each array is; the names are the model's, so its type has to say."""
        return {
            name: Kind.WEIGHTS if np.issubdtype(values.dtype, np.floating) else Kind.COUNTERS
            for name, values in upload.items()
        }
