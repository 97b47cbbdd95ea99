"""What a strategy may use of a client and of the server, without knowing how either works."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

Arrays = Mapping[str, np.ndarray]
Architecture = str
"""Names a model and its arguments; clients of one architecture have weights of the same shapes."""

LocalLoss = Callable[["Tensor", "Tensor | None", "Tensor"], "Tensor"]
"""Logits `[B, C]`, penultimate features `[B, F]` (None where the strategy does not need them) and labels
`[B]` of a private batch to a scalar that is added to the cross entropy."""

RehearsalLoss = Callable[["Tensor", "Tensor"], "Tensor"]
"""Logits `[B, C]` and rows of targets `[B, ...]` of rehearsed samples to a scalar."""

ServerLoss = Callable[..., "Tensor"]
"""Logits `[B, C]` and the batch's rows of every target array to a scalar."""


@dataclass(frozen=True, eq=False)
class FitSummary:
    """A client's last local training.

    Attributes:
        start: The weights it began with, by name.
        steps: Optimiser steps K; 0 if there was nothing to train on.
        lr: Learning rate η.
    """

    start: Arrays
    steps: int
    lr: float


class Supermask(Protocol):
    """The mask that a client learns for its present task: which of its d weights take part.

    Weights are counted layer after layer, in the network's order.
    """

    @property
    def is_settled(self) -> bool:
        """Whether it will not change any more."""

    @property
    def fingerprint(self) -> np.ndarray:
        """Bytes `[8]` uint8 that tell the weights which the client began with from others."""

    def bits(self) -> np.ndarray:
        """Return its bits `[⌈d/8⌉]` uint8, as `numpy.packbits` packs them."""

    def taken(self) -> np.ndarray | None:
        """Return the bits of the weights that are in masks of earlier tasks; empty: there are none yet.

        None: no weight is ever trained, so that none is taken.
        """

    def agree(self, log_odds: np.ndarray, taken: np.ndarray | None) -> None:
        """Make the mask anew of what all clients say; where they are divided, the client's own decides.

        Args:
            log_odds: That a weight takes part, `[≥ d]` float32.
            taken: Bits of the weights that nobody may train any more; None: of none.
        """


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """Samples that are nobody's, and that a client trains on along with its own: a batch of them a step.

    Attributes:
        samples: `[M, *input_shape]`.
        targets: What the model shall say of each, `[M, ...]`.
        loss: Added to the loss of the private batch.
    """

    samples: np.ndarray
    targets: np.ndarray
    loss: RehearsalLoss


class ClientView(Protocol):
    """A client as its strategy sees it."""

    memory: dict[str, np.ndarray]
    """Arrays that the strategy keeps on this client from one call to the next, by names of its own; empty at
    first. They are part of the client's state, so they are in checkpoints and never in messages. Replace an
    array instead of writing into it."""

    @property
    def classes(self) -> int:
        """Number of classes C."""

    def logits(self) -> np.ndarray:
        """Predict the requested transfer samples in evaluation mode: `[M, C]` float32."""

    def private_logits(self) -> np.ndarray:
        """Predict the client's own training samples in evaluation mode: `[S, C]` float32."""

    def network(self) -> nn.Module:
        """Return the client's network itself, on its device; to be read, and asked without gradients."""

    def label_counts(self) -> np.ndarray:
        """Count the client's training samples of each class: `[C]` int64."""

    def class_means(self, of: Literal["logits", "features"]) -> np.ndarray:
        """Average outputs over the client's training samples of each class, in evaluation mode.

        Returns:
            `[C, K]` float32; zeros where the client has no sample of the class.
        """

    def weights(self) -> dict[str, np.ndarray]:
        """Return copies of all parameters and buffers by name."""

    def load_weights(self, weights: Arrays) -> None:
        """Replace all parameters and buffers."""

    def trainable(self) -> tuple[str, ...]:
        """Return the names of those weights that are trained by gradients, in the model's order."""

    def supermask(self) -> Supermask:
        """Return the mask of the present task; only for a strategy that needs `masks`."""

    @property
    def last_fit(self) -> FitSummary:
        """The local training that this upload follows; only for a strategy that needs `weights`."""

    @property
    def learned(self) -> tuple[int, ...]:
        """The tasks of a stream that the client is through with, this round's training included, in order."""

    def learner_tells(self, tasks: Sequence[int]) -> dict[str, np.ndarray]:
        """Return what the client's learner has for a strategy that is made for it, by names of its own.

        Args:
            tasks: Places in the client's order of earlier tasks that the strategy asks about besides.
        """

    def tell_learner(self, arrays: Arrays) -> None:
        """Hand the learner what it is to hear from such a strategy."""

    def distil(self, targets: np.ndarray, samples: np.ndarray | None = None) -> None:
        """Train on the transfer set to lower the strategy's `loss`, with the scenario's `distill_` settings.

        Args:
            targets: `[K, C]`, one row per sample.
            samples: Indices of the transfer samples the rows belong to, `[K]`; None: the whole transfer set.
        """


class ServerModels(Protocol):
    """Models that the server can build, run and train on the transfer set."""

    @property
    def clients(self) -> int:
        """Number of clients of the whole federation N, whoever takes part in a round."""

    def architecture_of(self, client: int) -> Architecture:
        """Return the architecture of a client's model."""

    def clients_of(self, architecture: Architecture) -> list[int]:
        """Return the clients with models of an architecture, ascending, whoever takes part in a round."""

    def architecture(self, model: str, args: Mapping[str, Any]) -> Architecture:
        """Return the architecture of a model of the zoo or of a plug-in."""

    def initial_weights(self, architecture: Architecture) -> dict[str, np.ndarray]:
        """Return the weights of a fresh model, the same whenever it is asked."""

    def trainable(self, architecture: Architecture) -> tuple[str, ...]:
        """Return the names of those weights that are trained by gradients, in the model's order."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a sample, ``(channels, height, width)`` or ``(features,)``."""

    def network(self, architecture: Architecture, weights: Arrays | None = None) -> nn.Module:
        """Return a network on the CPU, of its own; without weights a fresh one, always the same."""

    def seed(self, purpose: str) -> int:
        """Return the seed of what the strategy draws itself for a purpose in this round."""

    def logits(self, architecture: Architecture, weights: Arrays) -> np.ndarray:
        """Predict the transfer set in evaluation mode: `[M, C]` float32."""

    def train(
        self,
        architecture: Architecture,
        weights: Arrays,
        targets: tuple[np.ndarray, ...],
        loss: ServerLoss,
        *,
        epochs: int,
        batch_size: int,
        lr: float,
        validation: float = 0.0,
        patience: int = 0,
    ) -> dict[str, np.ndarray]:
        """Train a model on the transfer set with Adam and a cosine schedule; return its new weights.

        Args:
            architecture: What to train.
            weights: Where it starts.
            targets: Arrays `[M, ...]`, one row per transfer sample.
            loss: Called with the logits of a batch and its rows of every array in `targets`.
            epochs: At most so many passes.
            batch_size: Samples a step.
            lr: Initial learning rate.
            validation: Share of the transfer set that is kept apart to stop on.
            patience: Stop after so many epochs without a lower loss there, and return the best weights; 0:
                never stop early.
        """
