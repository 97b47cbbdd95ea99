"""A model of the server's own, which lives on in the strategy's memory."""

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
    """Return the model's weights after a round's training on the transfer set; without epochs unchanged.

    Args:
        server: Trains it.
        architecture: The model's.
        memory: Its packed weights of the round before; empty in the first, for a fresh model.
        targets: Arrays `[M, ...]`, one row per transfer sample (see `ServerModels.train`).
        loss: Called with the logits of a batch and its rows of every target array.
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
    """Return a network of the strategy's own making, on the CPU, with its packed weights in `memory` if any.

    Only torch's draws of `make` may differ from call to call; `server` seeds them.
    """
    from fedkd.randomness import seeded_torch
    from fedkd.training.weights import load_weights, weights_of

    with seeded_torch(server.seed("own-network")):
        network = make()
    if PARAMETERS in memory and COUNTERS in memory:
        load_weights(network, unpack(memory, weights_of(network)))
    return network
