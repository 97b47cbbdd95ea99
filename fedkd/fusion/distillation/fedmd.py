"""FedMD: all clients distil the mean of their logits (arXiv 1910.03581)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge
from fedkd.fusion.distillation.selection import asked_samples
from fedkd.fusion.distillation.soft_labels import TeacherLogits
from fedkd.fusion.math.probabilities import finite_logits
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor


@hyperparameters
class FedMD(TeacherLogits):
    """Distil the mean logits on the transfer set (digest), then train privately (revisit).

    The plain form of averaging: all clients have equal weights. It works well for similar clients or balanced
    data, and costs local accuracy on skewed data.

    The paper's parties first train on the labelled public samples (`pretrain_epochs`), then privately until
    they converge (the first round's local training). Rounds of digest and revisit follow.
    """

    name: ClassVar[str] = "fedmd"
    recordable: ClassVar[bool] = True
    paper: ClassVar[str] = "Li and Wang, FedMD: Heterogenous Federated Learning via Model Distillation, 2019"

    matching: Literal["mae", "mse", "kl"] = "mae"
    """Loss on logits: `mae` as in the authors' code; `mse` pulls harder on confident samples; `kl`
    compares probabilities, so that models with different logit scales can agree."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """Temperature of `kl`; above 1 it also teaches the order of unlikely classes."""

    samples_per_round: Annotated[int, Field(ge=1)] | None = None
    """Transfer samples drawn, predicted and matched each round; absent: all. The authors draw 5,000 of their
    public set: a round costs less, and every round has other samples."""
    pretrain_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs of training on the transfer set *with its labels* before the first round, as in the paper; 0:
    none. Labels exist if `data.transfer.source` is `holdout` or another data set, whose label k trains output
    k. It helps with few private samples: clients start from common knowledge."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            guides="all_alike", over_graph="each", averages="logits", pretrain_epochs=self.pretrain_epochs
        )

    def request(
        self, transfer_size: int, memory: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> np.ndarray | None:
        """Return the round's alignment samples, ascending; None: all."""
        return asked_samples(transfer_size, self.samples_per_round, generator)

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the uniform mean of logits, `[M, C]`, shared by all."""
        assert knowledge.logits is not None
        clients = len(knowledge.clients)
        mean = finite_logits(knowledge.logits).mean(axis=0, dtype=np.float64).astype(np.float32)
        return Guidance(targets=mean, weights=np.full((clients, clients), 1.0 / clients))

    def loss(self, student_logits: Tensor, targets: Tensor) -> Tensor:
        """Return the distance of logits `[B, C]` to the mean logits `[B, C]`."""
        from fedkd.training import logits_mae, logits_mse

        if self.matching == "kl":
            return super().loss(student_logits, targets)
        return (logits_mae if self.matching == "mae" else logits_mse)(student_logits, targets)
