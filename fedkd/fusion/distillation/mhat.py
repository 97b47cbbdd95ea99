"""MHAT (Hu et al., 2021): predictions train a server model, which teaches the clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fedkd.fusion import Capabilities, Guidance, Knowledge, softmax
from fedkd.fusion.distillation.server_model import ServerTeacher
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor


@hyperparameters
class MHAT(ServerTeacher):
    """Distil the mean prediction into a server model that teaches clients; written from an abstract.

    ::

        q̄[i]   = mean_n softmax(z_n(x_i) / T)
        server ← minimise T² · mean_i KL(q̄[i] ‖ softmax(z(x_i) / T))
        client ← minimise T² · mean_i KL(softmax(z_server(x_i) / T) ‖ softmax(z_n(x_i) / T))

    It is `fedet` without weights and disagreement. The server's model remembers earlier rounds, so its
    targets are smoother than the mean of one round, but never better on the transfer set.
    """

    name: ClassVar[str] = "mhat"
    capabilities: ClassVar[Capabilities] = replace(ServerTeacher.capabilities, guides="all_alike")
    paper: ClassVar[str] = (
        "after the abstract of Hu et al., MHAT: An efficient model-heterogenous aggregation training scheme"
        " for federated learning, Information Sciences 560, 2021"
    )
    source_note: ClassVar[str] = "written from the abstract: losses, temperature and schedule are fedkd's"

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Train the server model; return its logits `[M, C]`, shared by all, and its weights as memory."""
        assert knowledge.logits is not None
        mean = softmax(knowledge.logits, self.temperature).mean(axis=0, dtype=np.float64).astype(np.float32)
        logits, kept = self._taught(knowledge, memory, (mean,), self.server_loss)
        return Guidance(targets=logits, memory=kept)

    def server_loss(self, logits: Tensor, mean: Tensor) -> Tensor:
        """Return ``T² · mean_i KL(q̄_i ‖ softmax(z_i / T))`` of logits and mean predictions `[B, C]`."""
        from fedkd.training import kd_kl

        return kd_kl(logits, mean, self.temperature)
