"""Weights of a model that are averaged, and others that stay where they are; and what parts a model has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.kinds import Kind
from fedkd.fusion.parameters import COUNTERS, PACKED, PARAMETERS, average, pack, packs_of, unpack
from fedkd.fusion.strategy import FusionStrategy, Guidance, Knowledge
from fedkd.fusion.views import Arrays, ClientView
from fedkd.hyperparameters import STRICT

HEAD = "head."
"""Begins the names of the weights of a model's head: those of every model of the zoo, and of a plug-in's if
it calls its last layer `head`. All others are the body's, statistics of normalisation layers included."""


def in_head(name: str) -> bool:
    """Return whether a weight is the head's."""
    return name.startswith(HEAD)


def in_body(name: str) -> bool:
    """Return whether a weight is the body's."""
    return not in_head(name)


AVERAGED = Capabilities(
    sends="weights",
    kinds={PARAMETERS: Kind.WEIGHTS, COUNTERS: Kind.COUNTERS},
    shapes=PACKED,
    receives=PACKED,
    guides="all_alike",
    needs={"gradients", "weights", "one_architecture"},
    uses_transfer_set=False,
    reach="all clients, all the same and as much as each sends, with their next message",
    shares_model=True,
)
"""Capabilities of a strategy that averages all weights of one architecture."""


@dataclass(frozen=True, config=STRICT)
class WeightAveraging(FusionStrategy):
    """Base of strategies whose server does no more than FedAvg's, if perhaps with a part of the weights.

    ::

        w ← Σ_n S_n w_n / Σ_n S_n      over the round's clients; S_n: training samples

    Statistics of normalisation layers are averaged along, and counters are those of who has counted most. All
    clients begin with the same weights, which their seed makes, so that the first round brings nothing down.
    """

    capabilities: ClassVar[Capabilities] = AVERAGED

    def exchanges(self, weight: str) -> bool:
        """Return whether a weight of this name leaves the client."""
        return True

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return what is exchanged of the client's weights, as `pack` has it."""
        return pack(self._exchanged(client.weights()))

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the clients' mean, shared by all."""
        return Guidance(targets=None, shared=average(packs_of(knowledge.extra), knowledge.samples))

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Put the mean in the place of what is exchanged; all else stays as it is."""
        own = client.weights()
        client.load_weights(own | unpack(guidance, self._exchanged(own)))

    def _exchanged(self, weights: Arrays) -> dict[str, np.ndarray]:
        return {name: values for name, values in weights.items() if self.exchanges(name)}


def exchanges(strategy: FusionStrategy, weight: str) -> bool:
    """Return whether a weight of this name leaves the clients of any strategy that needs `weights`."""
    return not isinstance(strategy, WeightAveraging) or strategy.exchanges(weight)
