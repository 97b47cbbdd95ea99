"""FedBABU: bodies learn below a head that nobody trains, until all is fine-tuned at the end.

J. Oh, S. Kim and S.-Y. Yun, "FedBABU: Toward Enhanced Representation for Federated Image Classification",
ICLR 2022, arXiv 2106.06042.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedkd.fusion.averaging import in_body
from fedkd.fusion.fedper import FedPer
from fedkd.fusion.local_objective import LocalObjective
from fedkd.fusion.views import Phase
from fedkd.hyperparameters import STRICT


@dataclass(frozen=True, config=STRICT)
class FedBABU(LocalObjective, FedPer):
    """Train and average the bodies alone; the head stays at the random start that all have in common.

    ::

        body_n ← `local_epochs` of SGD on the body, the head as it was made
        body   ← Σ_n S_n body_n / Σ_n S_n
        at last:  body_n, head_n ← some epochs of SGD on both, alone

    The last line is what makes it personal, and needs `finish = "trained"`: the accuracy of the last round is
    that before it, the accuracy of the round after it that of the fine-tuned models. In the paper SGD has lr
    0.1 and momentum 0.9, a tenth of that from the half of the rounds on and a hundredth from three quarters.
    """

    name: ClassVar[str] = "fedbabu"
    paper: ClassVar[str] = (
        "Oh, Kim & Yun, FedBABU: Toward Enhanced Representation for Federated Image Classification,"
        " ICLR 2022, arXiv 2106.06042"
    )

    tune_epochs: Annotated[int, Field(ge=1)] = 5
    """Epochs of the fine-tuning after the last fusion. In the paper one does most of it."""

    def phases(self, epochs: int, *, last: bool) -> Sequence[Phase]:
        """Return the body's phase; at last that of all weights."""
        return [Phase(self.tune_epochs, lambda name: True) if last else Phase(epochs, in_body)]
