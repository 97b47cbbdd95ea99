"""FedPer: a body that all clients share below a head of one's own.

M. G. Arivazhagan, V. Aggarwal, A. K. Singh and S. Choudhary, "Federated Learning with Personalization
Layers", 2019, arXiv 1912.00818.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic.dataclasses import dataclass

from fedkd.fusion.averaging import AVERAGED, WeightAveraging, in_body
from fedkd.fusion.capabilities import Capabilities
from fedkd.hyperparameters import STRICT


@dataclass(frozen=True, config=STRICT)
class FedPer(WeightAveraging):
    """Average the bodies; every client's head is its own, and both are trained together.

    ::

        w = (body, head_n):   body ← Σ_n S_n body_n / Σ_n S_n,   head_n stays

    Statistics of normalisation layers belong to the body, and are averaged with it. A head of the client's
    own knows the client's classes: look at local accuracy, before and after the body has changed under it.
    """

    name: ClassVar[str] = "fedper"
    capabilities: ClassVar[Capabilities] = replace(
        AVERAGED,
        sends="the body's weights",
        needs=AVERAGED.needs | {"parts"},
        shares_model=False,
    )
    paper: ClassVar[str] = (
        "Arivazhagan et al., Federated Learning with Personalization Layers, 2019, arXiv 1912.00818"
    )

    def exchanges(self, weight: str) -> bool:
        """Return whether it is the body's."""
        return in_body(weight)
