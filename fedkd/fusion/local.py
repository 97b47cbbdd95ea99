"""`local`: no exchange, the lower baseline of every table."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from fedkd.fusion import Capabilities, FusionStrategy, Guidance, Knowledge
from fedkd.fusion.capabilities import ANY_FORM
from fedkd.plugins import hyperparameters


@hyperparameters
class Local(FusionStrategy):
    """Train every client on its own samples alone, without any exchange."""

    name: ClassVar[str] = "local"
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="nothing", guides="nobody", uses_transfer_set=False, accepts=ANY_FORM
    )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return no guidance."""
        return Guidance(targets=None)
