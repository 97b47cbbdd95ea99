"""Averaging of weights, and the parts of a model."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from fedkd.fusion import Capabilities, FusionStrategy, Guidance, Kind, Knowledge
from fedkd.fusion.auxiliary import OWN_NETWORK
from fedkd.fusion.views import Arrays, ClientView
from fedkd.fusion.weights.parameters import COUNTERS, PACKED, PARAMETERS, average, pack, packs_of, unpack
from fedkd.plugins import hyperparameters

HEAD_PREFIX = "head."
"""Prefix of the head's weights, in the zoo and in plug-ins with a last layer `head`. All others are the
body's, statistics of normalisation layers included."""


def is_head_weight(name: str) -> bool:
    """Return whether a weight is the head's."""
    return name.startswith(HEAD_PREFIX)


def in_body(name: str) -> bool:
    """Return whether a weight is the body's."""
    return not is_head_weight(name)


AVERAGED = Capabilities(
    sends="weights",
    kinds={PARAMETERS: Kind.WEIGHTS, COUNTERS: Kind.COUNTERS},
    shapes=PACKED,
    receives=PACKED,
    guides="all_alike",
    needs={"gradients", "weights", "one_architecture"},
    uses_transfer_set=False,
    reach="all clients, with their next message: the same weights that they send",
    shares_model=True,
)
"""Capabilities of a strategy that averages all weights of one architecture."""


class AveragedNetwork(FusionStrategy):
    """Base of strategies whose clients send a packed network, and load the server's.

    ::

        w ← Σ_n S_n w_n / Σ_n S_n      over the round's clients; S_n: training samples

    Statistics of normalisation layers are averaged; counters are the largest client's. All clients begin
    with the weights of their seed, so the first round sends nothing down.
    """

    exchanged_network: ClassVar[str] = OWN_NETWORK

    def exchanges(self, weight: str) -> bool:
        """Return whether the weight of a name leaves the client."""
        return True

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return the exchanged weights, packed."""
        return pack(self._exchanged(client.weights(self.exchanged_network)))

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the clients' mean, shared by all."""
        return Guidance(targets=None, shared=average(packs_of(knowledge.payload), knowledge.samples))

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Replace the exchanged weights by the server's."""
        own = client.weights(self.exchanged_network)
        client.load_weights(own | unpack(guidance, self._exchanged(own)), self.exchanged_network)

    def _exchanged(self, weights: Arrays) -> dict[str, np.ndarray]:
        return {name: values for name, values in weights.items() if self.exchanges(name)}


@hyperparameters
class WeightAveraging(AveragedNetwork):
    """Base of strategies whose server averages all or some of the model's weights, as FedAvg does."""

    capabilities: ClassVar[Capabilities] = AVERAGED


def exchanges_weight(strategy: FusionStrategy, weight: str) -> bool:
    """Return whether a weight leaves the clients of a strategy that needs `weights`."""
    return not isinstance(strategy, WeightAveraging) or strategy.exchanges(weight)
