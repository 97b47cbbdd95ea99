"""FD: federated distillation without shared samples, from mean logits per label (arXiv 1811.11479)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.errors import UserError
from fedkd.fusion import Capabilities, Guidance, Kind, Knowledge, LocalObjective
from fedkd.fusion.math.probabilities import finite_logits, softmax
from fedkd.fusion.prototypes.label_means import (
    LabelMeans,
    distance_to_means,
    mean_by_label,
    mean_by_label_of_others,
    owners_of,
)
from fedkd.fusion.views import Arrays, LocalLoss
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor


@hyperparameters
class FD(LocalObjective, LabelMeans):
    """Distil, on every private sample, the other clients' mean logits for its label.

    ::

        F_n[l] = mean of z_n(x) over n's own training samples with label l          C×C numbers up
        G_n[l] = mean over the others that own label l of F_m[l]                    leave-one-out, C×C down
        loss   = CE(z, y) + λ · T² · KL(softmax(G_n[y] / T) ‖ softmax(z / T))       in local training

    The method needs no transfer set, and a message is C×C for any model: mean logits per label. Samples with
    a label that no other client owns have the cross entropy alone. Raw mean logits are unsuitable as soft
    targets: they do not sum to 1, and training diverges.

    Other code, under names like FedDistill, averages over the receiver too (`leave_one_out`), and over
    clients that do not own the label (`owners_only`).
    """

    name: ClassVar[str] = "fd"
    mean_of: ClassVar[Literal["features", "logits"]] = "logits"
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="mean logits per label",
        kinds={"label_logits": Kind.LABEL_LOGITS, "label_counts": Kind.LABEL_COUNTS},
        receives={"label_logits": "C C", "owners": "C"},
        guides="each",
        over_graph="each",
        needs={"gradients"},
        uses_local_loss=True,
        weighs_age=True,
        uses_transfer_set=False,
        reach="every client, for its next training: the means of the other participants",
        label_counts=True,
    )
    paper: ClassVar[str] = (
        "Jeong et al., Communication-Efficient On-Device Machine Learning: Federated Distillation and"
        " Augmentation under Non-IID Private Data, 2018"
    )

    strength: Annotated[float, Field(ge=0)] = 1.0
    """λ: weight of the others' answer beside the cross entropy. Lower it (0.1) if clients own few labels:
    means of skewed models are skewed themselves."""
    matching: Literal["kl", "mse"] = "kl"
    """Loss on the answer: `kl` between softmaxed logits, or `mse` between logits, which also matches
    their size, so that it is large where models' logit scales differ."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of `kl`. A label's own class dominates its mean logits, so 2 to 4 lets more of the other classes
    through."""
    weight_by_count: bool = False
    """Weigh clients by their samples of the label; the paper weighs them equally."""
    leave_one_out: bool = True
    """Leave a client's own answer out of its means. Without it all clients receive the same, and a
    label's only owner learns from itself."""
    owners_only: bool = True
    """Take means over owners of a label. Otherwise the others count as zeros, which pulls rare labels
    towards no answer; a label without owners is not taught. It excludes `weight_by_count`."""

    def __post_init__(self) -> None:
        if self.weight_by_count and not self.owners_only:
            raise UserError(
                "must be true with weight_by_count, which ignores clients without a label, got false",
                key="fusion.owners_only",
            )

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return each client's `label_logits` `[C, C]` of the others, and the number of `owners` `[C]`."""
        assert knowledge.label_counts is not None
        owned = knowledge.label_counts > 0
        weights: np.ndarray = owned if self.owners_only else np.ones(owned.shape)
        if self.weight_by_count:
            weights = knowledge.label_counts * 1.0
        if knowledge.freshness is not None:
            weights = weights * knowledge.freshness[:, None]
        logits = finite_logits(np.stack(knowledge.payload["label_logits"]))
        of_all = {"label_logits": mean_by_label(logits, weights), "owners": owners_of(owned)}
        if not self.leave_one_out:
            return Guidance(targets=None, personal=[of_all] * len(logits), for_absent=of_all)
        means = mean_by_label_of_others(logits, weights)
        owners = (owned.sum(axis=0) - owned).astype(np.int32)
        pairs = zip(means, owners, strict=True)
        personal = [{"label_logits": mean, "owners": count} for mean, count in pairs]
        return Guidance(targets=None, personal=personal, for_absent=of_all)

    def local_loss(self, guidance: Arrays) -> LocalLoss:
        """Return λ times the batch's mean distance to the others' mean logits."""
        import torch

        from fedkd.training import kd_kl

        owned = guidance["owners"] > 0
        # A row of zeros adds 0 to the KL and to its gradient.
        probabilities = torch.from_numpy(softmax(guidance["label_logits"], self.temperature) * owned[:, None])
        answers, has_answer = torch.tensor(guidance["label_logits"]), torch.from_numpy(owned)

        def loss(logits: Tensor, features: Tensor | None, labels: Tensor) -> Tensor:
            if self.matching == "kl":
                targets = probabilities.to(labels.device)[labels]
                return self.strength * kd_kl(logits, targets, self.temperature)
            return self.strength * distance_to_means(logits, labels, answers, has_answer)

        return loss
