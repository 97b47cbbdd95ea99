"""What kinds of model differ in: how one trains, predicts and is kept, and what a stream is to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from torch import nn

from fedkd.fusion.auxiliary import OWN
from fedkd.fusion.views import Arrays, PrivateGradient, Supermask, Trial
from fedkd.training.executor import Training


class ModelKind(ABC):
    """What a client asks of its kind of model; without a stream, tasks mean nothing to it."""

    @property
    @abstractmethod
    def strategy_name(self) -> str:
        """Name of the strategy, for what is refused."""

    @abstractmethod
    def train(self, round: int, proximal_mu: float = 0.0) -> Training[float]:
        """Train on the client's own samples and return the mean loss.

        Args:
            round: Round, 1-based.
            proximal_mu: μ of FedProx (Li et al. 2020): adds μ/2 · ‖w − w_received‖² to the loss.

        Raises:
            TrainingDiverged: The loss stopped being finite.
        """

    def set_out(self) -> Training[None]:
        """Do what comes before a client's first training and first guidance, and once; by default nothing."""
        yield from ()

    @abstractmethod
    def distil(self, targets: np.ndarray, samples: np.ndarray | None, round: int) -> Training[None]:
        """Train on transfer samples to match targets `[K, C]` (see `ClientView.distil`)."""

    @abstractmethod
    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return logits `[n, C]` float32 in evaluation mode."""

    @abstractmethod
    def features(self, x: np.ndarray) -> np.ndarray:
        """Return penultimate features `[n, F]` float32 in evaluation mode."""

    @abstractmethod
    def network(self, of: str = OWN) -> nn.Module:
        """Return a network itself, which nobody but the client's trainings may change.

        Args:
            of: Its own model, or an auxiliary network of its strategy by name.
        """

    @abstractmethod
    def weights(self, of: str = OWN) -> dict[str, np.ndarray]:
        """Return copies of all parameters and buffers, normalisation statistics included, by name."""

    @abstractmethod
    def load_weights(self, weights: Arrays, of: str = OWN) -> None:
        """Set all parameters and buffers."""

    @abstractmethod
    def trainable(self) -> tuple[str, ...]:
        """Return the names of those weights that are trained by gradients."""

    def frozen(self, weights: Arrays, of: str = OWN) -> nn.Module:
        """Return a network like the client's own with other weights, which stays as it is.

        Raises:
            TypeError: The client's model is no network, so its strategy should have said that it needs one.
        """
        raise self._no_network()

    def trial(self, targets: np.ndarray, samples: np.ndarray, asked: np.ndarray, round: int) -> Trial:
        """Return what an epoch of distilling targets would lead to (see `ClientView.trial`).

        Raises:
            TypeError: The client's model is no network.
        """
        raise self._no_network()

    def private_gradient(self, weights: Arrays, of: Sequence[str]) -> PrivateGradient:
        """Return a function that tells the gradient of own samples' cross entropy (see `ClientView`).

        Raises:
            TypeError: The client's model is no network.
        """
        raise self._no_network()

    def _no_network(self) -> TypeError:
        return TypeError(
            f"'{self.strategy_name}' asks for a network, so \"gradients\" has to be among its `needs`"
        )

    @abstractmethod
    def model_state(self) -> dict[str, np.ndarray]:
        """Return what `restore_model` needs."""

    @abstractmethod
    def restore_model(self, arrays: Arrays) -> None:
        """Put the model back to what `model_state` was taken of."""

    # A stream of tasks --------------------------------------------------------------------------------

    def enter(self, round: int) -> None:  # noqa: B027, without a stream there is nothing to enter
        """Move on to the task of a round, if it is a new one; called with every message, before guidance."""

    def end_task(self) -> None:  # noqa: B027
        """End the task under way, once everything about it has been learned, guidance included."""

    def sketch(self, round: int, bases: Arrays) -> dict[str, np.ndarray]:
        """Return sketches of what layers receive in the present task outside of bases, by their names."""
        return {}

    def supermask(self) -> Supermask:
        """Return the mask of the present task, which clients have for strategies that need `masks`.

        Raises:
            TypeError: The strategy does not say that it needs them, so nothing has made sure that they agree.
        """
        raise TypeError(f"'{self.strategy_name}' asks for masks, so \"masks\" has to be among its `needs`")

    def learned_by(self, round: int) -> tuple[int, ...]:
        """Return the tasks that the client is through with at the end of a round, in its order."""
        return ()

    def learner_tells(self, tasks: Sequence[int]) -> dict[str, np.ndarray]:
        """Return what the client's learner has for a strategy that is made for it (see `ClientView`)."""
        return {}

    def tell_learner(self, arrays: Arrays) -> None:  # noqa: B027
        """Hand the learner what it is to hear from such a strategy."""

    def task_metrics(self, round: int) -> dict[str, float]:
        """Return accuracies on the tasks of a stream, by the names of `fedkd.clients.task_metrics`."""
        return {}

    def learner_report(self, round: int) -> dict[str, float]:
        """Return what the client's learner has to say at the end of a task, by metric name."""
        return {}

    def learning_curves(self) -> dict[str, list[float]]:
        """Return the accuracy after each epoch of the last training, by split, where it was measured."""
        return {}

    def learn_again(self, task: int, guidance: Arrays, round: int) -> Training[None]:
        """Apply guidance of a task of the stream that the client has left; by default there is no stream.

        Args:
            task: The task.
            guidance: What the strategy fused of it for this client.
            round: Round the guidance belongs to.
        """
        yield from ()
