"""FedAsync: the server mixes each arriving model into its own (arXiv 1903.03934)."""

from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, LocalObjective
from fedkd.fusion.weights.server_steps import ServerSteps
from fedkd.plugins import hyperparameters


@hyperparameters
class FedAsync(LocalObjective, ServerSteps):
    """Mix each client's model into the server's, with less weight the older it is.

    ::

        y ≈ argmin_w CE(w) + μ/2 ‖w − x_received‖²      `local_epochs` on own samples
        x ← (1 − α s(τ)) x + α s(τ) y                   y began τ versions of x ago

    This is the case `asynchronous.buffer = 1`. K models enter by their mean: `x ← x + α (1/K) Σ_i s(τ_i) (y_i
    − x)`. Unlike FedBuff's step, y − x also undoes other clients' progress since the download, so clients
    that are always late pull x back.
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
