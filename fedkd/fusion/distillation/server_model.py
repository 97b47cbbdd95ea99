"""A model of the server's own, which lives on in the strategy's memory and may teach the clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, Knowledge, ServerModel
from fedkd.fusion.distillation.soft_labels import TeacherLogits
from fedkd.fusion.views import Architecture, Arrays, ServerLoss, ServerModels
from fedkd.fusion.weights.parameters import COUNTERS, PARAMETERS, pack, unpack
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import nn


def trained_on(
    server: ServerModels,
    architecture: Architecture,
    memory: Arrays,
    targets: tuple[np.ndarray, ...],
    loss: ServerLoss,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
) -> dict[str, np.ndarray]:
    """Return the model's weights after a round's training (see `ServerModels.train`).

    Training begins with the packed weights of a memory, or fresh.
    """
    weights = server.initial_weights(architecture)
    if memory:
        weights = unpack(memory, weights)
    if epochs == 0:
        return weights
    return server.train(architecture, weights, targets, loss, epochs=epochs, batch_size=batch_size, lr=lr)


def own_network(server: ServerModels, make: Callable[[], nn.Module], memory: Arrays) -> nn.Module:
    """Return a network of the strategy's own making, on the CPU, with its packed weights in `memory` if any.

    Only torch's draws of `make` may differ from call to call; `server` seeds them.
    """
    from fedkd.randomness import seeded_torch
    from fedkd.training import load_weights, weights_of

    with seeded_torch(server.seed("own-network")):
        network = make()
    if PARAMETERS in memory and COUNTERS in memory:
        load_weights(network, unpack(memory, weights_of(network)))
    return network


@hyperparameters
class ServerTeacher(ServerModel, TeacherLogits):
    """Base of strategies whose clients learn the logits of the server's model on the transfer set."""

    capabilities: ClassVar[Capabilities] = Capabilities(needs={"server"})

    server_model: str = "resnet20"
    """Server's model: a zoo name or `"pkg.mod:factory"`, larger than the clients'; `mlp` if not images."""
    server_args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the server's model, e.g. its width, which grows its capacity and costs."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of the distillation into clients. Above 1 it also teaches the ranking of other classes."""
    server_epochs: Annotated[int, Field(ge=0)] = 10
    """Passes over the transfer set per round. A server model that has learned too little holds its clients
    back, so raise this for a small transfer set or few rounds: aim at a hundred steps a round."""
    server_lr: Annotated[float, Field(gt=0)] = 1e-3
    """Initial learning rate of the server's Adam, which falls to 0 along a cosine in each round."""
    server_batch_size: Annotated[int, Field(gt=0)] = 64
    """Samples of one step on the server; smaller batches make more steps of a small transfer set."""

    def _taught(
        self,
        knowledge: Knowledge,
        memory: Mapping[str, np.ndarray],
        targets: tuple[np.ndarray, ...],
        loss: ServerLoss,
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Train the server's model; return its logits `[M, C]` and weights (see `trained_on`)."""
        assert knowledge.server is not None
        server = knowledge.server
        architecture = server.architecture(self.server_model, self.server_args)
        weights = trained_on(
            server,
            architecture,
            memory,
            targets,
            loss,
            epochs=self.server_epochs,
            batch_size=self.server_batch_size,
            lr=self.server_lr,
        )
        return server.logits(architecture, weights), pack(weights)
