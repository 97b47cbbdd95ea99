"""A server model in the strategy's memory, which may teach the clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedkd.fusion import Capabilities, FusionStrategy, Knowledge, ServerCost, ServerModel
from fedkd.fusion.distillation.soft_labels import TeacherLogits
from fedkd.fusion.views import Arrays, ServerLoss, ServerModels
from fedkd.fusion.weights.parameters import COUNTERS, PARAMETERS, pack, unpack
from fedkd.plugins import hyperparameters

if TYPE_CHECKING:
    from torch import Tensor, nn


def own_network(server: ServerModels, make: Callable[[], nn.Module], memory: Arrays) -> nn.Module:
    """Return a network of the strategy on the CPU, with the packed weights of `memory` if any.

    Only torch's draws in `make` may vary between calls; `server` seeds them.
    """
    from fedkd.randomness import seeded_torch
    from fedkd.training import load_weights, weights_of

    with seeded_torch(server.seed("own-network")):
        network = make()
    if PARAMETERS in memory and COUNTERS in memory:
        load_weights(network, unpack(memory, weights_of(network)))
    return network


class ServerNetwork(ServerCost):
    """Mixin of strategies whose server trains an `own_network` on uploads."""

    server_epochs: int
    server_lr: float
    server_batch_size: int
    server_optimizer: ClassVar[Literal["adam", "sgd"]] = "sgd"

    def trained_network(
        self,
        knowledge: Knowledge,
        memory: Arrays,
        make: Callable[[], nn.Module],
        data: tuple[np.ndarray, ...],
        loss: Callable[..., Tensor],
    ) -> nn.Module:
        """Return the network after the round's training on `data`, which may be empty."""
        assert knowledge.server is not None
        network = own_network(knowledge.server, make, memory)
        if self.server_epochs > 0 and len(data[0]):
            knowledge.server.fit(
                network,
                data,
                loss,
                optimizer=self.server_optimizer,
                lr=self.server_lr,
                epochs=self.server_epochs,
                batch_size=self.server_batch_size,
            )
        return network


@hyperparameters
class ServerStudent(ServerModel, FusionStrategy):
    """Base of strategies with a server model trained on the transfer set."""

    server_model: str | None = None
    """The server's model: a zoo name or `"pkg.mod:factory"`; absent: none. It smooths votes, and may be
    larger than clients' models; it must fit the data."""
    server_args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the server's model, e.g. its width, which grows its capacity and costs."""
    server_epochs: Annotated[int, Field(ge=0)] = 10
    """Passes over the transfer set per round. The model persists over rounds, and holds clients back if it
    has learned too little: aim at a hundred steps a round, more for a small transfer set."""
    server_lr: Annotated[float, Field(gt=0)] = 1e-3
    """Initial learning rate of the server's Adam, which falls to 0 along a cosine in each round."""
    server_batch_size: Annotated[int, Field(gt=0)] = 64
    """Samples of one step on the server; smaller batches make more steps of a small transfer set."""

    def _taught(
        self, knowledge: Knowledge, memory: Arrays, targets: tuple[np.ndarray, ...], loss: ServerLoss
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Train the model, from the weights in `memory` or fresh; return its logits `[M, C]` and weights."""
        server, name = knowledge.server, self.server_model
        assert server is not None and name is not None
        architecture = server.architecture(name, self.server_args)
        weights = server.initial_weights(architecture)
        if memory:
            weights = unpack(memory, weights)
        if self.server_epochs > 0:
            weights = server.train(
                architecture,
                weights,
                targets,
                loss,
                epochs=self.server_epochs,
                batch_size=self.server_batch_size,
                lr=self.server_lr,
            )
        return server.logits(architecture, weights), pack(weights)


@hyperparameters
class ServerTeacher(ServerStudent, TeacherLogits):
    """Base of strategies whose clients distil a server model's logits."""

    capabilities: ClassVar[Capabilities] = Capabilities(needs={"server"})

    server_model: str = "resnet20"
    """Server's model: a zoo name or `"pkg.mod:factory"`, larger than the clients'; `mlp` if not images."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of the distillation into clients. Above 1 it also teaches the ranking of other classes."""
