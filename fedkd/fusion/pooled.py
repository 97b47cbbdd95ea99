"""`pooled`: a model of each architecture, trained on all clients' samples. The upper end, beside `local`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.strategy import FusionStrategy, Guidance, Knowledge
from fedkd.hyperparameters import STRICT


@dataclass(frozen=True, config=STRICT)
class Pooled(FusionStrategy):
    """Centralised training: all clients of an architecture are one model, trained on everybody's samples.

    What a federation could reach at best if data could be shared; that its samples would have to travel is
    not counted as traffic. A round is `training.local_epochs` passes over the union of all clients' training
    samples, so N equal clients make N times as many steps as each alone would, and every round is trained in
    full: clients that are not sampled, drop out or are slow make no difference. The labels that a poisoned
    client flips are flipped for all; what it would feign in an upload is never sent. The local accuracy is
    that of the one model on each client's own test split.
    """

    name: ClassVar[str] = "pooled"
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="nothing", guides="nobody", needs={"gradients"}, pools=True, uses_transfer_set=False
    )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return no guidance."""
        return Guidance(targets=None)
