"""`centralized`: one model of each architecture, trained on all samples; the upper baseline."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from fedkd.fusion import Capabilities, FusionStrategy, Guidance, Knowledge
from fedkd.plugins import hyperparameters


@hyperparameters
class Centralized(FusionStrategy):
    """Centralized training: all clients of an architecture share a model, trained on all samples.

    The upper bound of a federation whose data could be shared; their transport is not counted as traffic. A
    round is `training.local_epochs` passes over all clients' training samples. It is trained in full,
    whatever clients are sampled, drop out or are slow. Labels flipped by a poisoned client are flipped for
    all. The local accuracy is that of the shared model on each client's own test split.
    """

    name: ClassVar[str] = "centralized"
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="nothing", guides="nobody", needs={"gradients"}, pools=True, uses_transfer_set=False
    )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return no guidance."""
        return Guidance(targets=None)
