"""FedProto: clients of different architectures share class prototypes (arXiv 2105.00243)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge, LocalObjective
from fedkd.fusion.prototypes.label_means import (
    PROTOTYPES,
    LabelMeans,
    distance_to_means,
    mean_by_label,
    owners_of,
    stacked_features,
)
from fedkd.fusion.views import Arrays, LocalLoss
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor


@hyperparameters
class FedProto(LocalObjective, LabelMeans):
    """Pull private features towards the federation's mean features of their classes.

    ::

        P_n[c] = mean of features f_n(x) over n's own samples of class c     after local training
        P[c]   = Σ_n count_n[c] P_n[c] / Σ_n count_n[c]                      over the clients that own c
        loss   = CE(z, y) + λ · mean ‖f(x) − P[y]‖² / F                      in local training

    Bodies may differ, but features have one width F. The method needs no transfer set; a message is C×F
    numbers. Samples of a class without an owner have the cross entropy alone.

    The paper measures the nearest prototype, ``argmin_c ‖f(x) − P[c]‖``, instead of the classifier:
    ``inference = "prototypes"``. Then prototypes have an immediate effect.
    """

    name: ClassVar[str] = "fedproto"
    paper: ClassVar[str] = (
        "Tan et al., FedProto: Federated Prototype Learning across Heterogeneous Clients, AAAI 2022"
    )

    strength: Annotated[float, Field(ge=0)] = 1.0
    """λ: weight of the distance to prototypes; 1 in the paper for MNIST, 0.1 for CIFAR-10. Too much of it
    shrinks all features to a point before the classes are apart: lower it if accuracy stays at chance."""

    inference: Literal["model", "prototypes"] = "model"
    """A client's answer in evaluations: its `model`'s output, or the nearest of the `prototypes`
    that it has received, as in the paper (the model's until there are any). A class without a prototype is
    never answered; prototypes know classes that a client has no sample of."""

    @cached_property
    def capabilities(self) -> Capabilities:
        from_guidance = self.inference == "prototypes"
        return replace(PROTOTYPES, over_graph="each", infers_from_guidance=from_guidance)

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the mean `prototypes` `[C, F]` and the number of `owners` `[C]` per class."""
        assert knowledge.label_counts is not None
        prototypes = mean_by_label(stacked_features(knowledge, self.name), knowledge.label_counts)
        shared = {"prototypes": prototypes, "owners": owners_of(knowledge.label_counts)}
        return Guidance(targets=None, shared=shared)

    def infer(self, features: np.ndarray, guidance: Arrays) -> np.ndarray:
        """Return ``−‖f − P[c]‖²``, `[n, C]`; a class without a prototype is farthest, but finite."""
        prototypes, owners = guidance["prototypes"].astype(np.float64), guidance["owners"]
        distances = np.zeros((len(features), len(prototypes)))
        for label in np.flatnonzero(owners):
            distances[:, label] = ((features - prototypes[label]) ** 2).sum(axis=1)
        farthest = distances.max(axis=1, keepdims=True)
        return -np.where(owners > 0, distances, 2 * farthest + 1)

    def local_loss(self, guidance: Arrays) -> LocalLoss:
        """Return ``λ · mean ‖f − P[y]‖² / F`` of a batch; 0 for samples of a class without an owner."""
        import torch

        prototypes, owned = torch.tensor(guidance["prototypes"]), torch.tensor(guidance["owners"] > 0)

        def loss(logits: Tensor, features: Tensor | None, labels: Tensor) -> Tensor:
            assert features is not None
            return self.strength * distance_to_means(features, labels, prototypes, owned)

        return loss
