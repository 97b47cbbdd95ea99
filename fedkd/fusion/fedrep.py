"""FedRep: a shared representation, learned below heads that are fitted to it first.

L. Collins, H. Hassani, A. Mokhtari and S. Shakkottai, "Exploiting Shared Representations for Personalized
Federated Learning", ICML 2021, arXiv 2102.07078.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedkd.fusion.averaging import in_body, in_head
from fedkd.fusion.fedper import FedPer
from fedkd.fusion.local_objective import LocalObjective
from fedkd.fusion.views import Phase
from fedkd.hyperparameters import STRICT


@dataclass(frozen=True, config=STRICT)
class FedRep(LocalObjective, FedPer):
    """Train the head on the body that came, then the body under the head that is; average the bodies.

    ::

        head_n ← `head_epochs` of training head_n, the body as received
        body_n ← `local_epochs` of training the body, head_n as it is now
        body   ← Σ_n S_n body_n / Σ_n S_n

    What differs from `fedper` is that the two are never trained together. Both phases have the scenario's
    optimiser; the paper has SGD with lr 0.01, momentum 0.5 and batches of 10. A training after the last
    fusion (`finish = "trained"`) is of the head alone, for the body that came last.
    """

    name: ClassVar[str] = "fedrep"
    paper: ClassVar[str] = (
        "Collins et al., Exploiting Shared Representations for Personalized Federated Learning, ICML 2021,"
        " arXiv 2102.07078"
    )

    head_epochs: Annotated[int, Field(ge=1)] = 10
    """Epochs of the head in every round; those of the body are `training.local_epochs`, 1 in the paper. A
    head is cheap and its problem convex: enough of them that it is fitted."""

    def phases(self, epochs: int, *, last: bool) -> Sequence[Phase]:
        """Return the head's phase, and the body's unless it is over with the last fusion."""
        head = Phase(self.head_epochs, in_head)
        return [head] if last else [head, Phase(epochs, in_body)]
