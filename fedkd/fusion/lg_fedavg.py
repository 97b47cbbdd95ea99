"""LG-FedAvg: bodies of one's own, whatever they are, below a head that all clients share.

P. P. Liang, T. Liu, L. Ziyin, N. B. Allen, R. P. Auerbach, D. Brent, R. Salakhutdinov and L.-P. Morency,
"Think Locally, Act Globally: Federated Learning with Local and Global Representations", 2020, arXiv
2001.01523.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic.dataclasses import dataclass

from fedkd.fusion.averaging import AVERAGED, WeightAveraging, in_head
from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.parameters import pack
from fedkd.fusion.strategy import Guidance
from fedkd.fusion.views import ServerModels
from fedkd.hyperparameters import STRICT


@dataclass(frozen=True, config=STRICT)
class LGFedAvg(WeightAveraging):
    """Average the heads; every client's body is its own, and bodies may be of any architecture.

    ::

        w = (body_n, head):   head ← Σ_n S_n head_n / Σ_n S_n,   body_n stays

    Features have to be equally wide, and mean the same to a shared head only as far as it has made them.
    Where architectures are mixed, all begin with client 0's head.

    Published figures start from a model that FedAvg has trained, and are those of each client's best round by
    test accuracy; here training begins at the beginning, and every round is told.
    """

    name: ClassVar[str] = "lg_fedavg"
    capabilities: ClassVar[Capabilities] = replace(
        AVERAGED,
        sends="the head's weights",
        needs={"gradients", "weights", "parts", "like_heads"},
        shares_model=False,
    )
    paper: ClassVar[str] = (
        "Liang et al., Think Locally, Act Globally: Federated Learning with Local and Global Representations,"
        " 2020, arXiv 2001.01523"
    )

    def exchanges(self, weight: str) -> bool:
        """Return whether it is the head's."""
        return in_head(weight)

    def prepare(self, server: ServerModels) -> Guidance | None:
        """Return the head that all begin with, unless they have the same in any case."""
        first = server.architecture_of(0)
        if len(server.clients_of(first)) == server.clients:
            return None
        return Guidance(targets=None, shared=pack(self._exchanged(server.initial_weights(first))))
