"""A client as the client half of its strategy sees it, for the length of one message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedkd.fusion.auxiliary import OWN
from fedkd.fusion.label_means import mean_of_label
from fedkd.fusion.views import Arrays, FitSummary, PrivateGradient, Supermask, Trial

if TYPE_CHECKING:
    from torch import nn

    from fedkd.clients.base import Client


class RoundView:
    """What `fedkd.fusion.views.ClientView` promises, for one client in one round.

    Args:
        client: The client.
        round: The round whose draws are used: that of the message for an upload, that in which the guidance
            was fused for learning.
        request: Indices of the transfer samples that the server asked for; None: all of them.
    """

    def __init__(self, client: Client, round: int, request: np.ndarray | None = None) -> None:
        self._client = client
        self._round = round
        self._request = request
        self.memory = client.memory

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return self._client.data.classes

    def logits(self) -> np.ndarray:
        """Predict the requested transfer samples: `[M, C]` float32."""
        x = self._client.data.transfer_x
        return self._client.predict(x if self._request is None else x[self._request])

    def private_logits(self) -> np.ndarray:
        """Predict the client's own training samples: `[S, C]` float32."""
        return self._client.predict(self._client.data.train_x)

    def private_features(self) -> np.ndarray:
        """Return the features of the client's own training samples: `[S, F]` float32."""
        return self._client.features(self._client.data.train_x)

    def private_labels(self) -> np.ndarray:
        """Return the labels that the client learns of its own training samples: `[S]` int64."""
        return self._client.training_labels()

    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what the client says of the own samples it keeps apart, `[k, C]`, and their labels `[k]`."""
        x, labels = self._client.kept_apart()
        if not len(labels):
            return np.empty((0, self.classes), dtype=np.float32), labels
        return self._client.predict(x), labels

    @property
    def round(self) -> int:
        """The round of the training, or that in which the guidance was fused."""
        return self._round

    @property
    def rounds(self) -> int:
        """Rounds of the whole run."""
        return self._client.rounds

    def network(self, of: str = OWN) -> nn.Module:
        """Return a network itself: the client's model, or an auxiliary one."""
        return self._client.network(of)

    def label_counts(self) -> np.ndarray:
        """Count the client's training samples of each class: `[C]` int64."""
        return np.bincount(self._client.data.train_y, minlength=self.classes)

    def class_means(self, of: Literal["logits", "features"]) -> np.ndarray:
        """Average outputs over the client's training samples of each class: `[C, K]` float32."""
        x, y = self._client.data.train_x, self._client.data.train_y
        outputs = self._client.predict(x) if of == "logits" else self._client.features(x)
        return mean_of_label(outputs, y, self.classes)

    def weights(self, of: str = OWN) -> dict[str, np.ndarray]:
        """Return copies of all parameters and buffers by name."""
        return self._client.weights(of)

    def load_weights(self, weights: Arrays, of: str = OWN) -> None:
        """Replace all parameters and buffers."""
        self._client.load_weights(weights, of)

    def trainable(self) -> tuple[str, ...]:
        """Return the names of those weights that are trained by gradients."""
        return self._client.trainable()

    def frozen(self, weights: Arrays, of: str = OWN) -> nn.Module:
        """Return a network like the client's own with other weights, which stays as it is."""
        return self._client.frozen(weights, of)

    @property
    def batch_size(self) -> int:
        """Samples of a batch of local training."""
        return self._client.batch_size

    def own_rows(self) -> np.ndarray:
        """Return which of the client's training samples this round's training is about, `[n]` ascending."""
        return self._client.own_rows(self._round)

    def generator(self, purpose: str) -> np.random.Generator:
        """Return the generator of what the strategy draws on this client for a purpose in this round."""
        return self._client.generator_of(f"strategy-{purpose}", self._round)

    def private_gradient(self, weights: Arrays, of: Sequence[str]) -> PrivateGradient:
        """Return a function that tells the gradient of own samples' cross entropy in some weights."""
        return self._client.private_gradient(weights, of)

    def supermask(self) -> Supermask:
        """Return the mask of the present task."""
        return self._client.supermask()

    @property
    def last_fit(self) -> FitSummary:
        """The local training that this upload follows."""
        assert self._client.last_fit is not None
        return self._client.last_fit

    @property
    def learned(self) -> tuple[int, ...]:
        """The tasks of a stream that the client is through with, this round's training included."""
        return self._client.learned_by(self._round)

    def learner_tells(self, tasks: Sequence[int]) -> dict[str, np.ndarray]:
        """Return what the client's learner has for a strategy that is made for it."""
        return self._client.learner_tells(tasks)

    def tell_learner(self, arrays: Arrays) -> None:
        """Hand the learner what it is to hear from such a strategy."""
        self._client.tell_learner(arrays)

    def distil(self, targets: np.ndarray, samples: np.ndarray | None = None) -> None:
        """Train on the transfer set at once, to lower the strategy's `loss`."""
        self._client.complete(self._client.be_taught(targets, samples, self._round))

    def trial(self, targets: np.ndarray, samples: np.ndarray, asked: np.ndarray) -> Trial:
        """Tell what the client would answer after an epoch of targets, and leave it as it is."""
        return self._client.trial(targets, samples, asked, self._round)
