"""The interface of a client's model: a network, or an estimator with `fit` and `predict_proba`."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from fedkd.clients.local.local_loss import LastGuidance
from fedkd.data import ClientData
from fedkd.fusion import ClientView, FitSummary
from fedkd.training import Training, TrainingHits

MODEL = "model/"
"""Prefix of a model's own arrays in a client's state."""

T = TypeVar("T")


class Trainee(ClientView, Protocol):
    """A trainer's view of a client; `round` is that of the training or guidance."""

    kept: dict[str, np.ndarray]
    """Guidance that shapes local training."""
    last_guidance: LastGuidance | None
    """Guidance that is rehearsed."""

    @property
    def data(self) -> ClientData:
        """The data of the present task."""

    def complete(self, training: Training[T]) -> T:
        """Bring a training to its end, and return its result."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished local training and its mean loss."""

    loss: float
    hits: TrainingHits | None = None
    """Right answers on the training samples; None: not counted."""
    fit: FitSummary | None = None
    """For strategies that exchange weights; None: the client has no network of its own."""


class Trainer(Protocol):
    """Holds, trains and evaluates a client's model."""

    def train(self, client: Trainee, proximal_mu: float = 0.0) -> Training[Trained]:
        """Train on private samples; `TrainingDiverged` if the loss stops being finite.

        μ of FedProx (Li et al. 2020) adds μ/2 · ‖w − w_received‖² to the loss.
        """

    def pretrain(self) -> Training[None]:
        """Pretrain before the first training and guidance, if the strategy needs it."""

    def distil(self, client: Trainee, targets: np.ndarray, samples: np.ndarray | None) -> Training[None]:
        """Train on transfer samples to match targets `[K, C]` (see `ClientView.distil`)."""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return logits `[n, C]` float32 in evaluation mode."""

    def threads(self, number: int) -> AbstractContextManager[None]:
        """Compute on this number of threads while the block runs."""

    def state(self) -> dict[str, np.ndarray]:
        """Return everything that `restore` needs."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Continue from a state that `state` returned."""
