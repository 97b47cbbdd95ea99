"""FedHKD: class means of features and predictions teach clients' heads (arXiv 2301.08968)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, FusionStrategy, Guidance, Kind, Knowledge, LocalObjective, softmax
from fedkd.fusion.prototypes.label_means import (
    PROTOTYPES,
    distance_to_means,
    label_means,
    mean_by_label,
    owners_of,
    stacked_features,
)
from fedkd.fusion.views import Arrays, ClientView, LocalBatch, LocalStep
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor

FEATURES, LOGITS, PROBABILITIES, OWNERS = "features", "label_logits", "probabilities", "owners"
LEAST = 1e-7
"""Floor of probabilities, for finite logarithms in float16 too."""


@hyperparameters
class FedHKD(LocalObjective, FusionStrategy):
    """Teach clients' heads the federation's mean predictions for mean features of classes.

    ::

        H_n[c] = mean of features f_n(x) over n's own samples of class c, + N(0, noise²)
        Q_n[c] = mean of softmax(z_n(x) / T) over them
        H[c]   = Σ_n count_n[c] H_n[c] / Σ_n count_n[c],   Q[c] likewise       over the clients that own c
        loss   = CE(z, y) + λ mean_c KL(Q[c] ‖ softmax(head(H[c]) / T)) + γ mean ‖f(x) − H[y]‖² / F

    The pair (H, Q), its hyper-knowledge, teaches heads classes without own samples; the last term is
    `fedproto`'s. The method needs no transfer set. C·(F + C + 1) numbers go up; C·(F + C) come down, and the
    number of owners of each class. A class without an owner teaches nothing.

    The paper also averages weights of one architecture. This is its variant without averaging, for any bodies
    with features of one width. In its public code the last owner of a class replaces the mean.
    """

    name: ClassVar[str] = "fedhkd"
    capabilities: ClassVar[Capabilities] = replace(
        PROTOTYPES,
        sends="mean features and mean predictions per class",
        kinds={FEATURES: Kind.FEATURES, LOGITS: Kind.LABEL_LOGITS, "label_counts": Kind.LABEL_COUNTS},
        shapes={FEATURES: "C F"},
        receives={FEATURES: "C F", "probabilities": "C C", "owners": "C"},
    )
    paper: ClassVar[str] = (
        "Chen, Wang and Vikalo, The Best of Both Worlds: Accurate Global and Personalized Models through"
        " Federated Learning with Data-Free Hyper-Knowledge Distillation, ICLR 2023"
    )

    strength: Annotated[float, Field(ge=0)] = 0.05
    """λ: weight of what the head learns of class means; 0.05 in the paper. It is what can teach a client
    classes that it does not have: raise it (0.5) where clients own few."""
    pull: Annotated[float, Field(ge=0)] = 0.05
    """γ: weight of the distance of features to the mean of their class; 0.05 in the paper."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.5
    """T of predictions; 0.5 in the paper, which makes them surer than they are."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the Gaussian noise on every number of H_n. The paper's is calibrated to be a
    guarantee of differential privacy; here it says how much of it the method bears, and no more."""

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return `features` `[C, F]`, `label_logits` `[C, C]`, log Q_n, and `label_counts` `[C]`."""
        labels, classes = client.private_labels(), client.classes
        counts = np.bincount(labels, minlength=classes)
        features = label_means(client.private_features(), labels, classes)
        if self.noise > 0:
            drawn = client.generator("noise").standard_normal(features.shape, dtype=np.float32)
            features = features + np.float32(self.noise) * drawn * (counts > 0)[:, None]
        said = label_means(softmax(client.private_logits(), self.temperature), labels, classes)
        return {FEATURES: features, LOGITS: np.log(np.maximum(said, LEAST)), "label_counts": counts}

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return H `[C, F]`, Q `[C, C]` and the number of `owners` `[C]` per class, for all clients."""
        assert knowledge.label_counts is not None
        counts, said = knowledge.label_counts, softmax(np.stack(knowledge.payload[LOGITS]))
        shared = {
            FEATURES: mean_by_label(stacked_features(knowledge, self.name, FEATURES), counts),
            PROBABILITIES: mean_by_label(said, counts),
            OWNERS: owners_of(counts),
        }
        return Guidance(targets=None, shared=shared)

    def local_step(self, client: ClientView, guidance: Arrays) -> LocalStep | None:
        """Return the client's loss; None: cross entropy, until there is hyper-knowledge."""
        if not guidance or not guidance[OWNERS].any():
            return None
        import torch

        from fedkd.training import cross_entropy, kd_kl

        owned = torch.tensor(guidance[OWNERS] > 0)
        means, said = torch.tensor(guidance[FEATURES]), torch.tensor(guidance[PROBABILITIES])

        def loss(batch: LocalBatch) -> Tensor:
            model: Any = batch.model
            features = batch.features
            assert features is not None
            told = model.head(means[owned].to(features)) / self.temperature
            value = cross_entropy(batch.logits, batch.labels)
            value = value + self.strength * kd_kl(told, said[owned].to(features.device), 1.0)
            return value + self.pull * distance_to_means(features, batch.labels, means.to(features), owned)

        return loss
