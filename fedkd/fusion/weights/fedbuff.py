"""FedBuff: the server averages a buffer of clients' updates (arXiv 2106.06639)."""

from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.views import ClientView
from fedkd.fusion.weights.parameters import PARAMETERS, pack
from fedkd.fusion.weights.server_steps import ServerSteps
from fedkd.plugins import hyperparameters


@hyperparameters
class FedBuff(ServerSteps):
    """Add the mean of K clients' buffered updates to the server's model.

    ::

        Δ_i = y_i − x at the download        a client's update
        x ← x + η_g (1/K) Σ_i s(τ_i) Δ_i     K uploads, τ_i versions of x old

    Without `[asynchronous]` all are of age 0, and at η_g = 1 it is the unweighted mean of the clients'
    weights. `[asynchronous]` sets K (`buffer`) and s (`staleness`).
    """

    name: ClassVar[str] = "fedbuff"
    capabilities: ClassVar[Capabilities] = replace(
        ServerSteps.capabilities, sends="steps of weights", sends_steps=True
    )
    paper: ClassVar[str] = (
        "Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022"
    )

    server_lr: Annotated[float, Field(gt=0)] = 1.0
    """η_g: share of the clients' mean way that the server goes. Below 1 it damps what old uploads do."""

    @property
    def _rate(self) -> float:
        return self.server_lr

    def _wanted(self, upload: np.ndarray, x: np.ndarray) -> np.ndarray:
        return upload

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return Δ in the order of the weights' names, and the counters."""
        trained, start = super().upload(client), client.last_fit.start
        began = pack({name: start[name] for name in sorted(start)})
        return trained | {PARAMETERS: trained[PARAMETERS] - began[PARAMETERS]}
