"""How much there is for a server to compute in a round, by which a strategy tells what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

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


def dense(*widths: int) -> float:
    """Return the operations of a forward pass of linear layers, one behind the other, of these widths."""
    return 2.0 * sum(before * after for before, after in pairwise(widths))
