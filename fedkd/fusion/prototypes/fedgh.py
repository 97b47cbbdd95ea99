"""FedGH: a global head, trained on the clients' mean features of each class (arXiv 2303.13137)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, FusionStrategy, Guidance, Kind, Knowledge
from fedkd.fusion.distillation.server_model import own_network
from fedkd.fusion.forms import check_feature_widths
from fedkd.fusion.server_cost import TRAINING, Extent, ServerCost, dense
from fedkd.fusion.views import Arrays, ClientView
from fedkd.fusion.weights.parameters import pack
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor, nn


@hyperparameters
class FedGH(ServerCost, FusionStrategy):
    """Train one head on the server, on every client's mean feature of every class; everybody puts it on.

    ::

        P_n[c]  = mean of features f_n(x) over n's own samples of class c     after local training, C×F up
        (W, b) ← minimise the mean of CE(W P_n[c] + b, c) over all n and the classes they own       by SGD
        head_n ← (W, b)                                                       everybody's, C×(F + 1) down

    Bodies stay with their clients and may be of any architecture, with features of one width F; each head is
    a single linear layer. The server's head lives on from round to round. All clients receive it, absent ones
    too, and train on from it: with it they know classes that they never saw. Numbers of samples are not sent,
    so every mean counts alike, as in the paper.

    In the authors' code the server's step belongs to a client's optimiser, so the head that is sent out
    stays at its random start.
    """

    name: ClassVar[str] = "fedgh"
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="mean features per class",
        kinds={"prototypes": Kind.FEATURES, "owned": Kind.LABEL_COUNTS},
        shapes={"prototypes": "C F"},
        receives={"head_weight": "O F", "head_bias": "O"},
        guides="all_alike",
        needs={"gradients", "features", "equal_features", "linear_head", "server"},
        uses_transfer_set=False,
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

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return `prototypes` `[C, F]`, and which of them are of `owned` classes `[C]`."""
        return owned_prototypes(client)

    def server_cost(self, extent: Extent) -> float:
        """Return the operations of training the head on N·C means."""
        means = extent.clients * extent.classes
        return TRAINING * self.server_epochs * means * dense(extent.width, extent.classes)

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the trained head, `head_weight` `[C, F]` and `head_bias` `[C]`; it is the memory too."""
        assert knowledge.label_counts is not None and knowledge.server is not None
        from torch import nn

        from fedkd.training import weights_of

        prototypes, classes = prototypes_of(knowledge, self.name)
        width, outputs = prototypes.shape[1], knowledge.label_counts.shape[1]
        head = own_network(knowledge.server, lambda: nn.Linear(width, outputs), memory)
        if self.server_epochs > 0 and len(classes):
            knowledge.server.fit(
                head,
                (prototypes, classes),
                self.server_loss,
                optimizer="sgd",
                lr=self.server_lr,
                epochs=self.server_epochs,
                batch_size=self.server_batch_size,
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


def owned_prototypes(client: ClientView) -> dict[str, np.ndarray]:
    """Return mean features of every class, `prototypes` `[C, F]`, and the `owned` classes `[C]`."""
    owned = (client.label_counts() > 0).astype(np.uint8)
    return {"prototypes": client.class_means("features"), "owned": owned}


def prototypes_of(knowledge: Knowledge, strategy: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the prototypes of owned classes, `[S, F]`, and their classes `[S]`, client after client."""
    assert knowledge.label_counts is not None
    uploads = knowledge.payload["prototypes"]
    check_feature_widths(strategy, knowledge.clients, [prototypes.shape[1] for prototypes in uploads])
    clients, classes = np.nonzero(knowledge.label_counts)
    return np.stack(uploads)[clients, classes], classes
