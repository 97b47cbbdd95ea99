"""FedAsync: the server mixes every model into its own on arrival (arXiv 1903.03934)."""

from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, LocalObjective
from fedkd.fusion.weights.server_steps import ServerSteps
from fedkd.plugins import hyperparameters


@hyperparameters
class FedAsync(LocalObjective, ServerSteps):
    """Mix a client's model into the server's, the less the older it is.

    ::

        y ≈ argmin_w CE(w) + μ/2 ‖w − x_received‖²      `local_epochs` on own samples
        x ← (1 − α s(τ)) x + α s(τ) y                   y began τ versions of x ago

    This is with `asynchronous.buffer` 1. Of K models at once the mean counts: `x ← x + α (1/K) Σ_i s(τ_i)
    (y_i − x)`. Unlike FedBuff's step, y − x also undoes what others have taught x since the client began,
    so a client that is always late pulls back in time.
    """

    name: ClassVar[str] = "fedasync"
    capabilities: ClassVar[Capabilities] = replace(ServerSteps.capabilities, sends="weights")
    paper: ClassVar[str] = "Xie, Koyejo and Gupta, Asynchronous Federated Optimization, OPT 2020"

    mixing: Annotated[float, Field(gt=0, le=1)] = 0.6
    """α: share of a fresh model. 1 replaces the server's model by it; try 0.1 where clients are many."""

    proximal_mu: Annotated[float, Field(ge=0)] = 0.005
    """μ, the paper's ρ: how hard local training is pulled to the model that it began with; 0.005 in its
    experiments on images. 0 leaves the cross entropy alone."""

    @property
    def _rate(self) -> float:
        return self.mixing

    def _wanted(self, upload: np.ndarray, x: np.ndarray) -> np.ndarray:
        return upload - x
