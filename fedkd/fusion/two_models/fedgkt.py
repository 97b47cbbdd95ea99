"""FedGKT: clients keep extractors; the server trains a model on their features (arXiv 2007.14513)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, FusionStrategy, Guidance, Kind, Knowledge, LocalObjective
from fedkd.fusion.auxiliary import OWN_NETWORK, AuxNetwork, AuxNetworks, joined
from fedkd.fusion.distillation.server_model import ServerNetwork
from fedkd.fusion.forms import check_feature_widths
from fedkd.fusion.math.probabilities import finite_logits, softmax
from fedkd.fusion.server_cost import FORWARDS_PER_TRAINING_STEP, RoundExtent, dense
from fedkd.fusion.views import Arrays, ClientView, LocalBatch, LocalStep
from fedkd.fusion.weights.parameters import COUNTERS, PARAMETERS, pack, unpack
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fedkd.fusion.auxiliary import Maker

SERVER = "server"
FEATURES, LOGITS, LABELS = "features", "sample_logits", "labels"
ANSWERS = "answers"
ON_TOP = "on_top"


@hyperparameters
class FedGKT(LocalObjective, AuxNetworks, ServerNetwork, FusionStrategy):
    """Train a server model on clients' features and labels; distil its logits into clients.

    ::

        client n: f = features(x), z = head(f), y                of all own samples, S (F + C + 1) numbers up
        server:   s ← minimise KD_T(s(f) ← z) + α CE(s(f), y)    over the samples of all clients
        client n: minimise CE(z, y) + α KD_T(z ← s(f))           S C numbers down, from the next training on

    KD_T(s ← t) = T² KL(softmax(t / T) ‖ softmax(s / T)). A model is cut after its `features`. Bodies may be
    of any architecture, with features of one width F. Uploads are predicted in evaluation mode after
    training, and the server's logits are stored by sample. The authors' code finds them by the number of a
    batch, which a shuffling loader fills with other samples, and predicts them during the server's training.

    Labels and features of every sample leave the client, which reveals much about it.

    Evaluations use the server's model on the client's features, as in the paper. Clients measure it, so
    guidance carries it and its traffic counts. ``inference = "model"`` trains equally without sending it.
    """

    name: ClassVar[str] = "fedgkt"
    server_optimizer: ClassVar[Literal["adam", "sgd"]] = "adam"
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="features, logits and label of every own sample",
        kinds={FEATURES: Kind.FEATURES, LOGITS: Kind.SAMPLE_LOGITS, LABELS: Kind.SAMPLE_LABELS},
        shapes={FEATURES: "s F", LOGITS: "s C"},
        receives={PARAMETERS: "p", COUNTERS: "c", ANSWERS: "n C"},
        guides="each",
        needs={"gradients", "features", "equal_features", "server"},
        uses_transfer_set=False,
        reach="all clients, with their next message: its model, if it answers; participants: their logits",
    )
    paper: ClassVar[str] = (
        "He et al., Group Knowledge Transfer: Federated Learning of Large CNNs at the Edge, NeurIPS 2020"
    )

    strength: Annotated[float, Field(ge=0)] = 1.0
    """α: weight of the server's logits for clients, and of labels for the server; 1 in the paper."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 3.0
    """T of what server and clients learn from each other; 3 in the paper."""
    server_hidden: tuple[Annotated[int, Field(gt=0)], ...] = (256, 256)
    """Hidden units of the server's model, layer by layer; none of them is a linear model."""
    server_epochs: Annotated[int, Field(ge=0)] = 10
    """Passes over all clients' samples a round; up to 20 in the paper. The model lives on between rounds."""
    server_lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of the server's Adam."""
    server_batch_size: Annotated[int, Field(gt=0)] = 64
    """Samples of one step on the server."""
    inference: Literal["server", "model"] = "server"
    """Evaluated model: the `server`'s model on the client's features, once there is one, or the client's
    own `model`."""

    def server_cost(self, extent: RoundExtent) -> float:
        """Return the operations of training on all samples and of predicting them."""
        forward = dense(extent.width, *self.server_hidden, extent.classes)
        return (FORWARDS_PER_TRAINING_STEP * self.server_epochs + 1) * extent.private * forward

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the server's logits of each client's samples, `[S, C]`; its weights are the memory."""
        from fedkd.training import limit_torch_threads, predict_logits, prepare_inputs, weights_of

        uploads = knowledge.payload
        check_feature_widths(self.name, knowledge.clients, [own.shape[1] for own in uploads[FEATURES]])
        own_features = [own.astype(np.float32) for own in uploads[FEATURES]]
        features, labels = np.concatenate(own_features), np.concatenate(uploads[LABELS])
        said = softmax(np.concatenate([finite_logits(own) for own in uploads[LOGITS]]), self.temperature)
        classes = said.shape[1]
        data = features, labels.astype(np.int64), said
        network = self.trained_network(
            knowledge, memory, lambda: self.network(features.shape[1], classes), data, self.server_loss
        )
        with limit_torch_threads(1):
            answers = [predict_logits(network, prepare_inputs(own, "cpu")) for own in own_features]
        personal = [{ANSWERS: own.numpy()} for own in answers]
        trained = pack(weights_of(network))
        shared = trained if self.inference == "server" else {}
        return Guidance(
            None, shared=shared, personal=personal, for_absent={} if shared else None, memory=trained
        )

    def server_loss(self, network: nn.Module, features: Tensor, labels: Tensor, said: Tensor) -> Tensor:
        """Return ``KD_T(s ← z) + α CE(s, y)`` of features `[B, F]` and clients' softmax(z / T) `[B, C]`."""
        from fedkd.training import cross_entropy, kd_kl

        logits = network(features)
        return kd_kl(logits, said, self.temperature) + self.strength * cross_entropy(logits, labels)

    def network(self, width: int, classes: int) -> nn.Module:
        """Return a fresh model of features `[B, F]`."""
        from torch import nn

        widths = (width, *self.server_hidden)
        hidden = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(widths[-1], classes))

    def aux_networks(self) -> Mapping[str, AuxNetwork]:
        def made(make: Maker) -> nn.Module:
            return self.network(make.width(), make.classes)

        return {SERVER: AuxNetwork(made, trained=False, sees="features")}

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return `features` `[S, F]`, `sample_logits` `[S, C]` and `labels` `[S]` of all own samples."""
        return {
            FEATURES: client.private_features(),
            LOGITS: client.private_logits(),
            LABELS: client.private_labels().astype(np.int32),
        }

    def apply(self, client: ClientView, guidance: Arrays) -> None:
        """Store the server's logits and load its model."""
        if ANSWERS in guidance:
            client.memory[ANSWERS] = np.array(guidance[ANSWERS])
        if PARAMETERS in guidance:
            client.load_weights(unpack(guidance, client.weights(SERVER)), SERVER)
            client.memory[ON_TOP] = np.array(1, dtype=np.int64)

    def local_step(self, client: ClientView, guidance: Arrays) -> LocalStep | None:
        """Return ``CE + α KD_T(z ← s)``, s by sample; None: cross entropy, until there are logits."""
        if ANSWERS not in client.memory:
            return None
        import torch

        from fedkd.training import cross_entropy, kd_kl

        answers = torch.from_numpy(softmax(client.memory[ANSWERS], self.temperature))

        def loss(batch: LocalBatch) -> Tensor:
            wanted = answers.to(batch.index.device)[batch.index]
            taught = kd_kl(batch.logits, wanted, self.temperature)
            return cross_entropy(batch.logits, batch.labels) + self.strength * taught

        return loss

    @property
    def evaluated_networks(self) -> tuple[str, ...]:  # type: ignore[override]
        """The client's model, and the server's on top if it is evaluated."""
        return (OWN_NETWORK, SERVER) if self.inference == "server" else (OWN_NETWORK,)

    def predictor(self, client: ClientView) -> nn.Module | None:
        """Return the server's model on top of the client's features, once it has arrived."""
        if self.inference == "model" or ON_TOP not in client.memory:
            return None

        def answer(x: Tensor, below: Any, above: nn.Module) -> Tensor:
            return above(below.features(x).flatten(1).float())

        return joined(answer, client.network(), client.network(SERVER))
