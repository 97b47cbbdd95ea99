"""`complementary`: learn from clients that are right where the receiver is wrong.

The paper (arXiv 2310.17653) finds such knowledge between any two models; fedkd chooses clients by it.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge, softmax
from fedkd.fusion.distillation.complement import complement, surer
from fedkd.fusion.distillation.confidence import log_confidence
from fedkd.fusion.distillation.soft_labels import TemperedLabels
from fedkd.fusion.math.combine import combine
from fedkd.fusion.math.neighbour_weights import effectiveness, nearest
from fedkd.plugins import hyperparameters


@hyperparameters
class Complementary(TemperedLabels):
    """Average a client's predictions with those of its most complementary clients.

    ::

        ρ⁺_nm  = share of transfer samples that m has right and n wrong
        T_n    = the 3 others of largest ρ⁺_nm > 0, and n itself
        K_n[i] = mean of q_m[i] over T_n

    KnFu chooses similar clients, this strategy dissimilar ones. Weak clients complement strong ones too:
    usually both ρ⁺ are above 0. Without labels m counts as right if the two disagree and m is more confident,
    so confident errors count too.
    """

    name: ClassVar[str] = "complementary"
    paper: ClassVar[str] = "after Roth et al., Fantastic Gains and Where to Find Them, ICLR 2024"

    judge: Literal["labels", "confidence"] = "labels"
    """Judge of disagreements: true `labels` of the transfer set, which the server then needs, or
    `confidence`."""
    teachers: Annotated[int, Field(ge=0)] = 3
    """Number of teachers, ties included; 0 is local training."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of predictions and of the loss."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            guides="each", needs=frozenset({"transfer_labels"} if self.judge == "labels" else ())
        )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return personal K `[N, M, C]` and its weights `[N, N]`."""
        assert knowledge.logits is not None
        said = knowledge.logits.argmax(axis=-1)
        if self.judge == "labels":
            rho = complement(said == knowledge.labels)
        else:
            rho = surer(said, log_confidence(knowledge.logits))
        keep = (nearest(-rho, self.teachers) & (rho > 0.0)) | np.eye(len(rho), dtype=bool)
        weights = effectiveness(np.zeros_like(rho), 0.0, keep=keep)
        q = softmax(knowledge.logits, self.temperature)
        return Guidance(combine(weights, q), weights, mixed=q)
