"""FedDF: average each architecture's weights, then distil the ensemble into it (arXiv 2006.07242)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Guidance, Kind, Knowledge
from fedkd.fusion.math.probabilities import finite_logits, softmax
from fedkd.fusion.server_cost import FORWARDS_PER_TRAINING_STEP, RoundExtent, ServerCost
from fedkd.fusion.weights.averaging import AveragedNetwork
from fedkd.fusion.weights.parameters import COUNTERS, PACKED, PARAMETERS, average, pack, packs_of, unpack
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor


@hyperparameters
class FedDF(ServerCost, AveragedNetwork):
    """Average weights per architecture, then distil the ensemble into each average.

    ::

        z̄(x_i) = mean over the round's clients of z_n(x_i)               the server runs the received models
        w_a    = Σ_n samples_n w_n / Σ_n samples_n                       over the clients of architecture a
        w_a   ← minimise mean_i KL(softmax(z̄(x_i)) ‖ softmax(z_a(x_i)))  Adam, cosine, early stop

    Every client starts its next training from its architecture's newest student, absent clients too.
    Architectures learn from each other through the ensemble alone. An architecture without clients in a round
    keeps its student. All clients of an architecture begin with the same weights. Statistics of normalisation
    layers are averaged.

    The paper stops on labelled validation data; here the distillation loss on held-out transfer samples
    needs no labels.
    """

    name: ClassVar[str] = "feddf"
    capabilities: ClassVar[Capabilities] = Capabilities(
        sends="weights",
        kinds={PARAMETERS: Kind.WEIGHTS, COUNTERS: Kind.COUNTERS},
        shapes=PACKED,
        receives=PACKED,
        guides="each",
        needs={"gradients", "weights", "server"},
        reach="all clients of the participants' architectures, with their next message",
        shares_model=True,
    )
    paper: ClassVar[str] = (
        "Lin et al., Ensemble Distillation for Robust Model Fusion in Federated Learning, NeurIPS 2020"
    )

    server_epochs: Annotated[int, Field(ge=0)] = 50
    """Passes over the transfer set per round and architecture, at most; 0 leaves the plain average. With a
    thousand samples an epoch is 8 steps, so the early stop decides, not this."""
    server_lr: Annotated[float, Field(gt=0)] = 1e-3
    """Initial learning rate of the server's Adam, which falls to 0 along a cosine; 1e-3 in the paper."""
    server_batch_size: Annotated[int, Field(gt=0)] = 128
    """Samples of one step on the server; 128 in the paper."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the transfer set kept apart to stop on. Raise it if the transfer set is small; 0 trains all
    epochs."""
    patience: Annotated[int, Field(ge=0)] = 5
    """Stop after so many epochs without a lower validation loss, and keep the best weights; 0 never stops."""

    def server_cost(self, extent: RoundExtent) -> float:
        """Return the operations of the ensemble's predictions and of each architecture's student."""
        if self.server_epochs == 0:
            return 0.0
        predicted = sum(cost * number for cost, number in extent.architectures.values())
        students = sum(cost for cost, _ in extent.architectures.values())
        an_epoch = FORWARDS_PER_TRAINING_STEP * (1.0 - self.validation) + self.validation
        return extent.samples * (predicted + students * an_epoch * self.server_epochs)

    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return the student's weights for every client of an architecture that took part."""
        server = knowledge.server
        assert server is not None
        uploads = packs_of(knowledge.payload)
        architectures = [server.architecture_of(client) for client in knowledge.clients]
        students = {}
        for architecture in dict.fromkeys(architectures):
            of_it = [n for n, name in enumerate(architectures) if name == architecture]
            students[architecture] = average([uploads[n] for n in of_it], knowledge.samples[of_it])
        if self.server_epochs > 0:
            like = {architecture: server.initial_weights(architecture) for architecture in students}
            total = np.zeros(1)
            for architecture, upload in zip(architectures, uploads, strict=True):
                logits = server.logits(architecture, unpack(upload, like[architecture]))
                total = total + finite_logits(logits)
            targets = softmax(total / len(uploads))
            for architecture, student in students.items():
                trained = server.train(
                    architecture,
                    unpack(student, like[architecture]),
                    (targets,),
                    self.server_loss,
                    epochs=self.server_epochs,
                    batch_size=self.server_batch_size,
                    lr=self.server_lr,
                    validation=self.validation,
                    patience=self.patience,
                )
                students[architecture] = pack(trained)
        absent = {
            client: student
            for architecture, student in students.items()
            for client in server.clients_of(architecture)
            if client not in knowledge.clients
        }
        personal = [students[architecture] for architecture in architectures]
        return Guidance(targets=None, personal=personal, absent=absent)

    def server_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return ``mean_i KL(ensemble_i ‖ softmax(z_i))`` of a student's logits `[B, C]`."""
        from fedkd.training import kd_kl

        return kd_kl(logits, targets, 1.0)
