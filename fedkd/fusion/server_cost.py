"""Size of a server's work in a round, for estimates of its cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any

FORWARDS_PER_TRAINING_STEP = 3
"""Forward passes that cost as much as a training step: backward costs two."""


@dataclass(frozen=True)
class RoundExtent:
    """Numbers of a round, and costs of forward passes.

    Attributes:
        clients: Clients N whose knowledge is fused.
        samples: Transfer samples M.
        classes: Classes C.
        private: Training samples of these clients in total.
        width: Penultimate features F of a client's model; 0: unknown.
        model: Operations of a forward pass of the server's model; 0: it has none of the zoo's.
        architectures: Operations of a forward pass of each client architecture, and its number of clients.
    """

    clients: int
    samples: int
    classes: int
    private: int = 0
    width: int = 0
    model: float = 0.0
    architectures: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class ServerCost:
    """Mixin: estimates of a fusion's arithmetic and memory, ``class Mine(ServerCost, FusionStrategy)``."""

    def server_cost(self, extent: RoundExtent) -> float:
        """Return the approximate operations of products and convolutions of a fusion."""
        return 0.0

    def server_memory(self, extent: RoundExtent) -> int:
        """Return the approximate bytes of a fusion; 0: unknown."""
        return 0


class ServerModel(ServerCost):
    """Mixin: a model that the server trains on the transfer set. Checks build it before a run."""

    server_model: str | None = None
    """Name of the model; a hyper-parameter."""
    server_args: Mapping[str, Any] = MappingProxyType({})
    """Keyword arguments of the model; a hyper-parameter."""
    server_epochs: int = 0
    """Epochs on the transfer set; a hyper-parameter."""

    def server_cost(self, extent: RoundExtent) -> float:
        """Return the operations of training the model and of its predictions."""
        return extent.model * extent.samples * (FORWARDS_PER_TRAINING_STEP * self.server_epochs + 1)


def dense(*widths: int) -> float:
    """Return the operations of a forward pass of linear layers of these widths."""
    return 2.0 * sum(before * after for before, after in pairwise(widths))
