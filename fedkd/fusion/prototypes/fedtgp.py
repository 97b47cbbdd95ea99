"""FedTGP: prototypes trained on the server, instead of means (arXiv 2401.03230)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge
from fedkd.fusion.distillation.server_model import ServerNetwork
from fedkd.fusion.prototypes.fedproto import FedProto
from fedkd.fusion.prototypes.label_means import OWNED, PROTOTYPES, owned_prototypes, owners_of
from fedkd.fusion.server_cost import FORWARDS_PER_TRAINING_STEP, RoundExtent, dense
from fedkd.fusion.weights.parameters import pack
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor, nn

NEVER_ZERO = 1e-12
"""Under a root, which has no gradient at 0."""


@hyperparameters
class FedTGP(ServerNetwork, FedProto):
    """FedProto with prototypes trained on the server with a margin between classes.

    ::

        P_n[c] = mean of features f_n(x) over n's own samples of class c         after local training, C×F up
        P[c]   = W₂ relu(W₁ e_c + b₁) + b₂                          e_c [F], W and b: learned, C×F down
        server ← minimise the mean over all (P_n, c) of
                 CE over c' of −(‖P_n − P[c']‖ + δ [c' = c])        SGD, the margin δ makes it harder
        δ      = min(max_{c ≠ c'} ‖Q[c] − Q[c']‖, τ)                Q[c]: mean of P_n[c] over the clients
        loss   = CE(z, y) + λ · mean ‖f(x) − P[y]‖² / F             in local training, as in FedProto

    The server keeps its parameters over rounds. All means have equal weight: numbers of samples are not sent.

    The authors' code differs in two ways. Its δ is the largest distance of a class to its nearest other
    (``margin = "nearest"``). Its accuracy is that of the nearest prototype (``inference = "prototypes"``).
    """

    name: ClassVar[str] = "fedtgp"
    paper: ClassVar[str] = (
        "Zhang et al., FedTGP: Trainable Global Prototypes with Adaptive-Margin-Enhanced Contrastive"
        " Learning, AAAI 2024"
    )

    strength: Annotated[float, Field(ge=0)] = 10.0
    """λ: weight of the distance to prototypes; 10 in the paper. Learned ones allow more than means."""
    margin: Literal["farthest", "nearest"] = "farthest"
    """δ: the largest distance between any two classes (`farthest`, the paper), or the largest of the
    distances of each to its `nearest` other class (the authors' code)."""
    margin_limit: Annotated[float, Field(ge=0)] = 100.0
    """τ: δ at most; 100 in the paper. 0 trains without a margin."""
    server_epochs: Annotated[int, Field(ge=0)] = 100
    """Passes over the round's means; 100 in the paper. 0 sends what is not trained."""
    server_lr: Annotated[float, Field(gt=0)] = 0.01
    """Learning rate of the server's SGD; 0.01 in the paper."""
    server_batch_size: Annotated[int, Field(gt=0)] = 10
    """Means of one step on the server; 10 in the paper."""

    @cached_property
    def capabilities(self) -> Capabilities:
        return replace(
            super().capabilities, kinds=OWNED, needs=PROTOTYPES.needs | {"server"}, label_counts=False
        )

    def server_cost(self, extent: RoundExtent) -> float:
        """Return the operations of making all prototypes in every step, and of their distances."""
        means, width = extent.clients * extent.classes, extent.width
        made = dense(width, width, width) / self.server_batch_size
        return FORWARDS_PER_TRAINING_STEP * self.server_epochs * means * extent.classes * (made + 2.0 * width)

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the learned `prototypes` `[C, F]` and the number of `owners` `[C]` so far."""
        import torch
        from torch import nn

        from fedkd.training import weights_of

        assert knowledge.label_counts is not None and knowledge.server is not None
        heard, classes = owned_prototypes(knowledge, self.name)
        width, outputs = heard.shape[1], knowledge.label_counts.shape[1]
        margin = min(margin_of(heard, classes, self.margin), self.margin_limit)

        def codes_to_prototypes() -> nn.Module:
            code = nn.Embedding(outputs, width)
            return nn.Sequential(code, nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

        def loss(network: nn.Module, heard: Tensor, classes: Tensor) -> Tensor:
            return server_loss(network(torch.arange(outputs)), heard, classes, margin)

        network = self.trained_network(knowledge, memory, codes_to_prototypes, (heard, classes), loss)
        with torch.no_grad():
            learned = network(torch.arange(outputs)).numpy()
        owners = owners_of(knowledge.label_counts)
        owners += memory.get("owners", np.zeros(outputs, np.int32))
        shared = {"prototypes": learned, "owners": owners}
        return Guidance(targets=None, shared=shared, memory=pack(weights_of(network)) | {"owners": owners})


def margin_of(heard: np.ndarray, classes: np.ndarray, of: Literal["farthest", "nearest"]) -> float:
    """Return the largest distance of a class's mean to the `farthest` or `nearest` other; 0 for one class.

    `heard` are prototypes `[S, F]` of `classes` `[S]`.
    """
    owned = np.unique(classes)
    if len(owned) < 2:
        return 0.0
    means = np.stack([heard[classes == label].mean(axis=0, dtype=np.float64) for label in owned])
    apart = np.sqrt(((means[:, None] - means[None]) ** 2).sum(axis=2))
    np.fill_diagonal(apart, np.nan)
    return float(np.nanmax(np.nanmax(apart, axis=1) if of == "farthest" else np.nanmin(apart, axis=1)))


def server_loss(learned: Tensor, heard: Tensor, classes: Tensor, margin: float) -> Tensor:
    """Return the mean cross entropy of ``−(distance + δ for the true class)`` over classes.

    `learned` are all prototypes `[C, F]`; `heard` are clients' means `[B, F]` of `classes` `[B]`.
    """
    import torch.nn.functional as F

    from fedkd.training import cross_entropy

    squares = (heard[:, None] - learned[None]).square().sum(dim=2)
    right = F.one_hot(classes, len(learned))
    return cross_entropy(-((squares + NEVER_ZERO).sqrt() + margin * right), classes)
