"""Strategies whose server has a model that learns from the clients and then teaches them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.extent import ServerModel
from fedkd.fusion.parameters import pack
from fedkd.fusion.server_model import trained_on
from fedkd.fusion.soft_labels import TeacherLogits
from fedkd.fusion.strategy import Knowledge
from fedkd.fusion.views import ServerLoss
from fedkd.hyperparameters import STRICT


@dataclass(frozen=True, config=STRICT)
class ServerTeacher(ServerModel, TeacherLogits):
    """Base of strategies whose clients learn the logits of the server's model on the transfer set."""

    capabilities: ClassVar[Capabilities] = Capabilities(needs={"server"})

    server_model: str = "resnet20"
    """The server's model: a zoo name or `"pkg.mod:factory"`. Larger than the clients', and fit for the data:
    `mlp` where samples are not images."""
    server_args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the server's model, e.g. its width; they multiply what the server can learn and
    what a round costs."""
    temperature: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """T of what clients learn from the server. Above 1 it also teaches how the server ranks the other
    classes."""
    server_epochs: Annotated[int, Field(ge=0)] = 10
    """Passes over the transfer set per round. The server model lives on from round to round; until it has
    learned something it holds its clients back, so raise this for a small transfer set or few rounds: aim at
    a hundred steps a round."""
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
        """Train the server's model for a round; return its logits `[M, C]`, and its weights for the memory.

        Targets are arrays `[M, ...]`; the loss takes logits of a batch and its rows of each of them.
        """
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
