"""A local step on a model small enough to follow by hand: its batch, and the client that it is asked of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from fedkd.fusion.strategy import FusionStrategy
from fedkd.fusion.views import LocalBatch
from fedkd.models.zoo.classifier import Classifier
from fedkd.training.weights import load_weights, weights_of


def small_model(seed: int, *, width: int = 3, classes: int = 4) -> Classifier:
    """Return a classifier of two inputs in float64, whose features are ``tanh(A x)``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Classifier(nn.Sequential(nn.Linear(2, width), nn.Tanh()), width, classes).double()


class OneClient:
    """As much of a client as a local step asks of it."""

    def __init__(self, model: Classifier) -> None:
        self.model = model
        self.memory: dict[str, np.ndarray] = {}

    def weights(self) -> dict[str, np.ndarray]:
        return weights_of(self.model)

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        load_weights(self.model, weights)

    def frozen(self, weights: Mapping[str, np.ndarray]) -> nn.Module:
        model = small_model(0, width=self.model.head.in_features, classes=self.model.head.out_features)
        load_weights(model, weights)
        return model.requires_grad_(False).eval()


def batch_of(model: Classifier, samples: int = 5) -> LocalBatch:
    """Return a batch of drawn samples, as the client's training makes it."""
    generator = np.random.default_rng(samples)
    inputs = torch.tensor(generator.normal(size=(samples, 2)))
    labels = torch.tensor(generator.integers(0, model.head.out_features, samples))
    features = model.features(inputs)
    logits = model.head(features)
    logits.retain_grad()
    return LocalBatch(model, torch.arange(samples), inputs, labels, logits, features)


def loss_of(strategy: FusionStrategy, client: OneClient, batch: LocalBatch) -> torch.Tensor | None:
    step = strategy.local_step(client, {})
    return None if step is None else step(batch)


def features_by_hand(weights: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    return np.tanh(x @ weights["body.0.weight"].T + weights["body.0.bias"])


def logits_by_hand(weights: Mapping[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    return features_by_hand(weights, x) @ weights["head.weight"].T + weights["head.bias"]


def cross_entropy_by_hand(logits: np.ndarray, labels: np.ndarray) -> float:
    log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(-log[np.arange(len(labels)), labels].mean())
