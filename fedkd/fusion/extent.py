"""How much there is for a server to compute in a round, by which a strategy tells what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any

TRAINING = 3
"""What a training step takes of a forward pass of its samples: that, and two as dear on the way back."""


@dataclass(frozen=True)
class Extent:
    """What comes to the server in a round, and what its models are.

    Attributes:
        clients: Clients N whose knowledge is fused.
        samples: Transfer samples M.
        classes: Classes C.
        private: Training samples of these clients, all together.
        width: Penultimate features F of a client's model; 0: nobody knows.
        model: Operations of a forward pass of the server's own model; 0: it has none of the zoo's.
        architectures: Operations of a forward pass of each architecture among the clients' models, and how
            many of these clients have it.
    """

    clients: int
    samples: int
    classes: int
    private: int = 0
    width: int = 0
    model: float = 0.0
    architectures: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class ServerCost:
    """Mixin: estimate of a fusion's arithmetic, ``class Mine(ServerCost, FusionStrategy)``."""

    def server_cost(self, extent: Extent) -> float:
        """Return the operations of products and convolutions of a fusion, about."""
        return 0.0


class ServerModel(ServerCost):
    """Mixin: a model that the server trains on the transfer set. Checks build it before a run."""

    server_model: str | None = None
    """Name of the model; a hyper-parameter."""
    server_args: Mapping[str, Any] = MappingProxyType({})
    """Keyword arguments of the model; a hyper-parameter."""
    server_epochs: int = 0
    """Passes over the transfer set in which it is trained; a hyper-parameter."""

    def server_cost(self, extent: Extent) -> float:
        """Return the operations of training the model and of asking it."""
        return extent.model * extent.samples * (TRAINING * self.server_epochs + 1)


def dense(*widths: int) -> float:
    """Return the operations of a forward pass of linear layers, one behind the other, of these widths."""
    return 2.0 * sum(before * after for before, after in pairwise(widths))
