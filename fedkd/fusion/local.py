"""`local`: nothing is exchanged. The lower baseline that every table must have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from fedkd.fusion.strategy import FusionStrategy, Guidance, Knowledge
from fedkd.hyperparameters import STRICT

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, config=STRICT)
class Local(FusionStrategy):
    """Every client trains alone, on its own samples; the transfer set is never touched."""

    name: ClassVar[str] = "local"
    sends: ClassVar[Literal["logits", "nothing"]] = "nothing"

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return no guidance."""
        return Guidance(targets=None)

    def loss(self, student_logits: Tensor, targets: Tensor) -> Tensor:
        """Refuse: there is never anything to learn.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("'local' gives no guidance, so it has no distillation loss")
