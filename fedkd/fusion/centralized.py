"""`centralized`: one model of each architecture, trained on all samples; the upper baseline."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from fedkd.fusion import Capabilities, FusionStrategy, Guidance, Knowledge
from fedkd.fusion.capabilities import ANY_FORM
from fedkd.plugins import hyperparameters


@hyperparameters
class Centralized(FusionStrategy):
    """Centralized training: one model per architecture, trained on all clients' samples.

    The upper bound of a federation that could share its data; traffic excludes their transport. A round is
    `training.local_epochs` passes over all clients' training samples. Sampling, dropout and slow clients have
    no effect. Labels flipped by a poisoned client are flipped for all. The local accuracy is that of the
    shared model on each client's own test split.
    """

    name: ClassVar[str] = "centralized"
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="nothing",
        guides="nobody",
        needs={"gradients"},
        accepts=ANY_FORM,
        pools=True,
        uses_transfer_set=False,
    )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return no guidance."""
        return Guidance(targets=None)
