"""A model of the server's own, which lives on from round to round in the strategy's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fedkd.fusion.parameters import COUNTERS, PARAMETERS, unpack
from fedkd.fusion.views import Architecture, Arrays, ServerLoss, ServerModels

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
    """Return the model's weights after a round's training on the transfer set; with no epochs as they were.

    Args:
        server: Trains it.
        architecture: The model's.
        memory: The packed weights of the round before; empty in the first, which begins with a fresh model.
        targets: Arrays `[M, ...]`, one row per transfer sample (see `ServerModels.train`).
        loss: Called with the logits of a batch and its rows of every array in `targets`.
        epochs: Passes over the transfer set.
        batch_size: Samples a step.
        lr: Initial learning rate.
    """
    weights = server.initial_weights(architecture)
    if memory:
        weights = unpack(memory, weights)
    if epochs == 0:
        return weights
    return server.train(architecture, weights, targets, loss, epochs=epochs, batch_size=batch_size, lr=lr)


def own_network(server: ServerModels, make: Callable[[], nn.Module], memory: Arrays) -> nn.Module:
    """Return a network of the strategy's own making, on the CPU.

    Args:
        server: Seeds the fresh one.
        make: Makes it; only torch's draws may differ from call to call.
        memory: Its packed weights of the round before, among other arrays perhaps; without them it is fresh.
    """
    from fedkd.randomness import seeded_torch
    from fedkd.training.weights import load_weights, weights_of

    with seeded_torch(server.seed("own-network")):
        network = make()
    if PARAMETERS in memory and COUNTERS in memory:
        load_weights(network, unpack(memory, weights_of(network)))
    return network
