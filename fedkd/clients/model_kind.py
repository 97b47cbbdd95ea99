"""A client's model as the client asks it: a network, or an estimator with `fit` and `predict_proba`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedkd.training.executor import Training

if TYPE_CHECKING:
    from fedkd.clients.base import Client

MODEL = "model/"
"""Prefix of a model's own arrays in a client's state."""


class Trainer(Protocol):
    """Holds a client's model, trains it and asks it."""

    def train(self, client: Client, proximal_mu: float = 0.0) -> Training[float]:
        """Train on the client's own samples and return the mean loss.

        Args:
            client: Its `round` is that of the training.
            proximal_mu: μ of FedProx (Li et al. 2020): adds μ/2 · ‖w − w_received‖² to the loss.

        Raises:
            TrainingDiverged: The loss stopped being finite.
        """

    def set_out(self) -> Training[None]:
        """Train once before the first training and the first guidance, where the strategy wants it."""

    def distil(self, client: Client, targets: np.ndarray, samples: np.ndarray | None) -> Training[None]:
        """Train on transfer samples to match targets `[K, C]` (see `ClientView.distil`)."""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return logits `[n, C]` float32 in evaluation mode."""

    def threads(self, number: int) -> AbstractContextManager[None]:
        """Compute on this number of threads while the block runs."""

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that `restore` needs."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from a state that `state` returned."""
