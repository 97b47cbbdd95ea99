"""FedGH: a global head, trained on the clients' mean features of each class (arXiv 2303.13137)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Knowledge
from fedkd.fusion.distillation.server_model import ServerNetwork
from fedkd.fusion.prototypes.label_means import OWNED, PROTOTYPES, LabelMeans, owned_prototypes
from fedkd.fusion.server_cost import FORWARDS_PER_TRAINING_STEP, RoundExtent, dense
from fedkd.fusion.views import Arrays, ClientView
from fedkd.fusion.weights.parameters import pack
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor, nn


@hyperparameters
class FedGH(ServerNetwork, LabelMeans):
    """Train one head on the server, on all clients' mean features per class.

    ::

        P_n[c]  = mean of features f_n(x) over n's own samples of class c     after local training, C×F up
        (W, b) ← minimise the mean of CE(W P_n[c] + b, c) over all n and the classes they own       by SGD
        head_n ← (W, b)                                                     for all clients, C×(F + 1) down

    Bodies stay with their clients and may be of any architecture, with features of one width F; each head is
    a single linear layer. The server keeps its head over rounds. All clients receive it, absent ones too, and
    continue training from it. So they predict classes that they never saw. Numbers of samples are not sent,
    so all means have equal weight, as in the paper.

    In the authors' code the server's step uses a client's optimiser, so the sent head stays at its random
    initialisation.
    """

    name: ClassVar[str] = "fedgh"
    capabilities: ClassVar[Capabilities] = replace(
        PROTOTYPES,
        kinds=OWNED,
        receives={"head_weight": "O F", "head_bias": "O"},
        needs=PROTOTYPES.needs | {"linear_head", "server"},
        uses_local_loss=False,
        label_counts=False,
    )
    paper: ClassVar[str] = (
        "Yi et al., FedGH: Heterogeneous Federated Learning with Generalized Global Header, ACM MM 2023"
    )

    server_epochs: Annotated[int, Field(ge=0)] = 10
    """Passes over all means a round; 1 in the paper, whose runs have hundreds of rounds. A round has few
    means, at most N·C: with too few passes the head lags behind the bodies, and is worse than what it
    replaces."""
    server_lr: Annotated[float, Field(gt=0)] = 0.01
    """Learning rate of the server's SGD; 0.01 in the paper."""
    server_batch_size: Annotated[int, Field(gt=0)] = 1
    """Means of one step on the server; one by one in the paper."""

    def server_cost(self, extent: RoundExtent) -> float:
        """Return the operations of training the head on N·C means."""
        means = extent.clients * extent.classes
        return FORWARDS_PER_TRAINING_STEP * self.server_epochs * means * dense(extent.width, extent.classes)

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the trained head, `head_weight` `[C, F]` and `head_bias` `[C]`; it is the memory too."""
        assert knowledge.label_counts is not None and knowledge.server is not None
        from torch import nn

        from fedkd.training import weights_of

        means, classes = owned_prototypes(knowledge, self.name)
        width, outputs = means.shape[1], knowledge.label_counts.shape[1]
        head = self.trained_network(
            knowledge, memory, lambda: nn.Linear(width, outputs), (means, classes), self.server_loss
        )
        trained = weights_of(head)
        shared = {"head_weight": trained["weight"], "head_bias": trained["bias"]}
        return Guidance(targets=None, shared=shared, memory=pack(trained))

    def server_loss(self, head: nn.Module, prototypes: Tensor, classes: Tensor) -> Tensor:
        """Return the mean cross entropy of prototypes `[B, F]` of classes `[B]`."""
        from fedkd.training import cross_entropy

        return cross_entropy(head(prototypes), classes)

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Load the server's head."""
        head = {"head.weight": guidance["head_weight"], "head.bias": guidance["head_bias"]}
        client.load_weights({**client.weights(), **head})
