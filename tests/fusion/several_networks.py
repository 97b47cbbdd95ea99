"""A client with auxiliary networks, small enough to follow by hand: float64, plain SGD."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from local_steps import OneClient, batch_of, small_model
from torch import nn

from fedkd.fusion.auxiliary import OWN_NETWORK
from fedkd.fusion.strategy import FusionStrategy
from fedkd.models.zoo.classifier import Classifier
from fedkd.training.weights import load_weights, trainable_names, weights_of


class SeveralNetworks(OneClient):
    """As much of a client as strategies with auxiliary networks ask of it."""

    round, rounds = 1, 1

    def __init__(self, model: Classifier, **others: nn.Module) -> None:
        super().__init__(model)
        self.networks: dict[str, nn.Module] = {OWN_NETWORK: model, **others}

    def network(self, of: str = OWN_NETWORK) -> nn.Module:
        return self.networks[of]

    def weights(self, of: str = OWN_NETWORK) -> dict[str, np.ndarray]:
        return weights_of(self.networks[of])

    def load_weights(self, weights: Mapping[str, np.ndarray], of: str = OWN_NETWORK) -> None:
        load_weights(self.networks[of], weights)

    def frozen(self, weights: Mapping[str, np.ndarray], of: str = OWN_NETWORK) -> nn.Module:
        network = copy.deepcopy(self.networks[of]).requires_grad_(False).eval()
        load_weights(network, weights)
        return network

    def trainable(self) -> tuple[str, ...]:
        return trainable_names(self.model)


def step(strategy: FusionStrategy, client: SeveralNetworks, *, lr: float = 0.1, steps: int = 1) -> float:
    """Take steps of SGD with all networks on one batch; return the loss of the last."""
    loss, value = strategy.local_step(client, {}), torch.zeros(())
    assert loss is not None
    parameters = [p for network in client.networks.values() for p in network.parameters()]
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = None
        told = loss(batch_of(client.model))
        value = told[0] if isinstance(told, tuple) else told
        value.backward()
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad
    return value.item()


def gradient(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the cross entropy's gradient on that batch at some weights, by hand."""
    batch = batch_of(small_model(0))
    x, y = batch.inputs.numpy(), batch.labels.numpy()
    features = np.tanh(x @ weights["body.0.weight"].T + weights["body.0.bias"])
    z = features @ weights["head.weight"].T + weights["head.bias"]
    return backwards(weights, x, features, (softmax(z) - np.eye(z.shape[1])[y]) / len(y))


def backwards(
    weights: Mapping[str, np.ndarray], x: np.ndarray, features: np.ndarray, slope: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the gradient of the weights, given that of the logits `[B, C]`."""
    back = (slope @ weights["head.weight"]) * (1 - features**2)
    return {
        "body.0.weight": back.T @ x,
        "body.0.bias": back.sum(axis=0),
        "head.weight": slope.T @ features,
        "head.bias": slope.sum(axis=0),
    }


def softmax(z: np.ndarray) -> np.ndarray:
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def assert_weights(network: nn.Module, wanted: Mapping[str, np.ndarray]) -> None:
    for name, values in weights_of(network).items():
        np.testing.assert_allclose(values, wanted[name], rtol=0, atol=2e-7, err_msg=name)
