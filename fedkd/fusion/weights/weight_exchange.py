"""The client's part with Flower's averaging strategies: it sends its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedkd.fusion import Capabilities, FusionStrategy, Guidance, Kind, Knowledge
from fedkd.fusion.capabilities import ANY_FORM
from fedkd.fusion.views import Arrays, ClientView


@dataclass(frozen=True)
class WeightExchange(FusionStrategy):
    """Send the model, which the next message replaces; `name` is Flower's, as ``"flwr:FedAvg"``."""

    name: str
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="weights",
        needs={"gradients", "weights", "one_architecture"},
        kinds={},
        accepts=ANY_FORM,
        by_flower=True,
        brings_model=True,
        uses_transfer_set=False,
    )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Raise: one of Flower's strategies averages."""
        raise NotImplementedError(f"'{self.name}' averages on Flower's server, so it has no `fuse`")

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return the client's parameters and buffers by name."""
        return client.weights()

    def kinds_of(self, upload: Arrays) -> dict[str, Kind]:
        """Return each array's kind by its type, since names are the model's."""
        return {
            name: Kind.WEIGHTS if np.issubdtype(values.dtype, np.floating) else Kind.COUNTERS
            for name, values in upload.items()
        }
