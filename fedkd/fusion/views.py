"""What a strategy may use of a client and of the server, without knowing how either works."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from fedkd.fusion.auxiliary import OWN

if TYPE_CHECKING:
    from torch import Tensor, nn

Arrays = Mapping[str, np.ndarray]
Architecture = str
"""Names a model and its arguments; clients of one architecture have weights of the same shapes."""

LocalLoss = Callable[["Tensor", "Tensor | None", "Tensor"], "Tensor"]
"""Logits `[B, C]`, penultimate features `[B, F]` (None where the strategy does not need them) and labels
`[B]` of a private batch to a scalar that is added to the cross entropy."""

LocalStep = Callable[["LocalBatch"], "Tensor | tuple[Tensor, Tensor]"]
"""A private batch to the whole of the loss that is minimised on it, a scalar: no cross entropy is added.

Where it is not the model's logits that answer, it returns those `[B, C]` that do along with the loss: right
answers in training are counted by them."""

RehearsalLoss = Callable[["Tensor", "Tensor"], "Tensor"]
"""Logits `[B, C]` and rows of targets `[B, ...]` of rehearsed samples to a scalar."""

ServerLoss = Callable[..., "Tensor"]
"""Logits `[B, C]` and the batch's rows of every target array to a scalar."""


@dataclass(frozen=True, eq=False)
class LocalBatch:
    """One batch of a client's local training.

    Attributes:
        model: The network in training. It maps samples to logits, of the present task in a stream, and has
            `features` and `head` if the strategy needs features.
        index: Places among the client's own training samples, `[B]` int64.
        inputs: The samples, `[B, *input_shape]`.
        labels: Their labels, `[B]` int64.
        logits: The model's, `[B, C]`.
        features: Penultimate features `[B, F]`; None where the strategy does not need them.
    """

    model: nn.Module
    index: Tensor
    inputs: Tensor
    labels: Tensor
    logits: Tensor
    features: Tensor | None


Distillation = tuple[np.ndarray, "np.ndarray | None"]
"""Targets `[K, C]` and the indices of their transfer samples `[K]`; None: the whole transfer set."""

PrivateGradient = Callable[[Arrays, np.ndarray], tuple[float, dict[str, np.ndarray]]]
"""Values of some weights by name, and indices `[B]` of own training samples, to their mean cross entropy and
its gradient in these weights."""


@dataclass(frozen=True)
class Phase:
    """Some epochs of a local training in which some of the weights are trained and all others stay.

    Attributes:
        epochs: How many; a straggler takes at most one.
        trains: Whether a parameter of this name is trained.
    """

    epochs: int
    trains: Callable[[str], bool]


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


@dataclass(frozen=True, eq=False)
class Trial:
    """The answers of a client that has tried some guidance.

    Attributes:
        kept_logits: Of the held-out own samples, `[k, C]` float32.
        kept_labels: Their labels, `[k]` int64.
        transfer_logits: Of the transfer samples that were asked about, `[A, C]` float32.
    """

    kept_logits: np.ndarray
    kept_labels: np.ndarray
    transfer_logits: np.ndarray


@dataclass(frozen=True, eq=False)
class Network:
    """A network as a server knows it before it has seen any weights.

    Attributes:
        weights: Arrays of the shapes and types of all parameters and buffers, by name; their values are 0.
        trainable: Names of the parameters that are trained.
    """

    weights: Arrays
    trainable: tuple[str, ...]

    @classmethod
    def like(cls, weights: Arrays, trainable: Iterable[str]) -> Network:
        """Return the network that has such weights; it takes no memory for their values."""
        zeros = {name: np.broadcast_to(np.zeros((), w.dtype), w.shape) for name, w in weights.items()}
        return cls(zeros, tuple(trainable))


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
    """Samples that a client replays: each step of local training takes a batch of them along.

    Attributes:
        samples: `[M, *input_shape]`.
        targets: `[M, ...]`.
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

    def private_features(self) -> np.ndarray:
        """Return the features of the client's own training samples, in evaluation mode: `[S, F]` float32."""

    def private_labels(self) -> np.ndarray:
        """Return the labels that the client learns of its own training samples: `[S]` int64."""

    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what the client predicts of the own samples that it keeps apart and never trains on.

        They are training samples, never test samples; how many, says the strategy's `held_out_share`.

        Returns:
            Logits `[k, C]` float32 in evaluation mode and the labels that it learns `[k]` int64; none of a
            client that has too few samples to keep two apart.
        """

    @property
    def round(self) -> int:
        """The round of the training, or that in which the guidance was fused; 1-based."""

    @property
    def rounds(self) -> int:
        """Rounds of the whole run."""

    def network(self, of: str = OWN) -> nn.Module:
        """Return a network itself, on the client's device: its model, or an auxiliary one by name.

        It is to be read, asked without gradients, and trained by the loss of a `local_step`.
        """

    def label_counts(self) -> np.ndarray:
        """Count the client's training samples of each class: `[C]` int64."""

    def class_means(self, of: Literal["logits", "features"]) -> np.ndarray:
        """Average outputs over the client's training samples of each class, in evaluation mode.

        Returns:
            `[C, K]` float32; zeros where the client has no sample of the class.
        """

    def weights(self, of: str = OWN) -> dict[str, np.ndarray]:
        """Return copies of all parameters and buffers by name, of the model or of an auxiliary network."""

    def load_weights(self, weights: Arrays, of: str = OWN) -> None:
        """Replace all parameters and buffers, of the model or of an auxiliary network."""

    def trainable(self) -> tuple[str, ...]:
        """Return the names of those weights that are trained by gradients, in the model's order."""

    def frozen(self, weights: Arrays, of: str = OWN) -> nn.Module:
        """Return a network like the client's model, or an auxiliary one, with other weights, which stays so.

        It is in evaluation mode, on the client's device, and none of its weights has a gradient; what is
        computed with it has one with respect to its inputs. Called with samples it returns logits, of the
        present task in a stream. Only for a strategy that needs `gradients`.

        Args:
            weights: All parameters and buffers by name.
            of: Which network.
        """

    @property
    def batch_size(self) -> int:
        """Samples of a batch of local training."""

    def own_rows(self) -> np.ndarray:
        """Return which of the client's training samples this round's training is about, `[n]` ascending.

        All but those that are kept apart to stop on; in a stream that passes over samples once, a part.
        """

    def generator(self, purpose: str) -> np.random.Generator:
        """Return the generator of what the strategy draws on this client for a purpose in this round."""

    def private_gradient(self, weights: Arrays, of: Sequence[str]) -> PrivateGradient:
        """Return a function that tells the gradient of own samples' cross entropy in some weights of a model.

        The model is one like the client's own, in evaluation mode. Only for a strategy that needs
        `gradients`.

        Args:
            weights: All of its parameters and buffers by name.
            of: Which of them the gradient is in; their values are given with every call.
        """

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
        """Train on the transfer set at once, with the strategy's `loss` and the `distill_` settings.

        Args:
            targets: `[K, C]`, one row per sample.
            samples: Indices of the transfer samples the rows belong to, `[K]`; None: the whole transfer set.
        """

    def trial(self, targets: np.ndarray, samples: np.ndarray, asked: np.ndarray) -> Trial:
        """Distil targets for one epoch, tell what comes of it, and put the client's model back.

        Trials of a round begin with the same weights and take the samples in the same order. Only for a
        strategy that has `trials`.

        Args:
            targets: `[K, C]`, one row per sample.
            samples: Indices of the transfer samples the rows belong to, `[K]`.
            asked: Indices of the transfer samples to be answered afterwards, `[A]`.
        """


class ServerModels(Protocol):
    """Models that the server can build, run and train, on the transfer set or on what clients uploaded."""

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

    def fit(
        self,
        network: nn.Module,
        arrays: Sequence[np.ndarray],
        loss: Callable[..., Tensor],
        *,
        optimizer: Literal["adam", "sgd"],
        lr: float,
        epochs: int,
        batch_size: int,
        weight_decay: float = 0.0,
    ) -> None:
        """Train a network in place on whatever the strategy has: what clients uploaded, or what it drew.

        On the CPU with one thread, in batches of the server's own draws, so that the same comes of the same
        wherever the server runs.

        Args:
            network: On the CPU; the strategy has made it with draws from `seed`.
            arrays: `[n, ...]` each, one row per sample.
            loss: Called as ``loss(network, *batch)`` with a batch `[B, ...]` of each array; returns a scalar.
            optimizer: Which; it starts fresh.
            lr: Its learning rate, all along.
            epochs: Passes over the samples.
            batch_size: Samples a step.
            weight_decay: Of the optimiser.
        """
