"""Interfaces of a client and the server for strategies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from fedkd.fusion.auxiliary import OWN_NETWORK

if TYPE_CHECKING:
    from torch import Tensor, nn

Arrays = Mapping[str, np.ndarray]
Architecture = str
"""Name of a model with its arguments; equal architectures have weights of equal shapes."""

LocalLoss = Callable[["Tensor", "Tensor | None", "Tensor"], "Tensor"]
"""Maps logits `[B, C]`, features `[B, F]` (None unless the strategy needs them) and labels `[B]` of a private
batch to a scalar, which is added to the cross entropy."""

LocalStep = Callable[["LocalBatch"], "Tensor | tuple[Tensor, Tensor]"]
"""Maps a private batch to its whole loss, a scalar, and optionally logits `[B, C]` for training accuracy."""

RehearsalLoss = Callable[["Tensor", "Tensor"], "Tensor"]
"""Maps logits `[B, C]` and targets `[B, ...]` of replayed samples to a scalar."""

ServerLoss = Callable[..., "Tensor"]
"""Maps logits `[B, C]` and the batch's rows of every target array to a scalar."""


@dataclass(frozen=True, eq=False)
class LocalBatch:
    """One batch `[B]` of local training.

    Attributes:
        model: The network in training, with `features` and `head` if the strategy needs features.
        index: Places among the client's own training samples, int64.
        logits: The model's, `[B, C]`, of the present task in a stream.
        features: Penultimate features `[B, F]`; None where the strategy does not need them.
    """

    model: nn.Module
    index: Tensor
    inputs: Tensor
    labels: Tensor
    logits: Tensor
    features: Tensor | None


Distillation = tuple[np.ndarray, "np.ndarray | None"]
"""Targets `[K, C]` and indices of their transfer samples `[K]`; None: the whole transfer set."""

PrivateGradient = Callable[[Arrays, np.ndarray], tuple[float, dict[str, np.ndarray]]]
"""Maps some weights by name and indices `[B]` of own training samples to the mean cross entropy and its
gradient in these weights."""


@dataclass(frozen=True)
class Phase:
    """Epochs of local training of the parameters that `trains` selects; at most one for stragglers."""

    epochs: int
    trains: Callable[[str], bool]


@dataclass(frozen=True, eq=False)
class FitSummary:
    """A client's last local training: its first weights, its steps K (0 without samples), its rate η."""

    start: Arrays
    steps: int
    lr: float


@dataclass(frozen=True, eq=False)
class TrialLogits:
    """Logits `[k, C]` and labels `[k]` of held-out own samples, and logits `[A, C]` of transfer samples."""

    kept_logits: np.ndarray
    kept_labels: np.ndarray
    transfer_logits: np.ndarray


@dataclass(frozen=True, eq=False)
class Network:
    """Shapes and types of a network's weights, as zeros, and the names of the trained ones."""

    weights: Arrays
    trainable: tuple[str, ...]

    @classmethod
    def like(cls, weights: Arrays, trainable: Iterable[str]) -> Network:
        """Return the description of given weights, without memory for values."""
        zeros = {name: np.broadcast_to(np.zeros((), w.dtype), w.shape) for name, w in weights.items()}
        return cls(zeros, tuple(trainable))


class Supermask(Protocol):
    """A client's mask of its present task, over all d weights in the network's order."""

    @property
    def is_settled(self) -> bool:
        """True if the mask is final."""

    @property
    def fingerprint(self) -> np.ndarray:
        """Bytes `[8]` uint8 that identify the client's initial weights."""

    def bits(self) -> np.ndarray:
        """Return the packed bits `[⌈d/8⌉]` uint8, as of `numpy.packbits`."""

    def taken(self) -> np.ndarray | None:
        """Return the bits of earlier tasks' masks, empty at first; None: weights are never trained."""

    def agree(self, log_odds: np.ndarray, taken: np.ndarray | None) -> None:
        """Set the mask by log-odds `[≥ d]` of all clients' masks; at 0 the own mask decides.

        `taken` are the bits of weights whose training has ended.
        """


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """Samples `[M, *input_shape]` to replay with targets `[M, ...]`, and their additional loss."""

    samples: np.ndarray
    targets: np.ndarray
    loss: RehearsalLoss


class ClientView(Protocol):
    """A client as its strategy sees it."""

    memory: dict[str, np.ndarray]
    """Arrays that the strategy keeps on this client between calls, by names of its own; empty at first.
    Checkpoints hold them, messages do not. Replace an array instead of writing into it."""

    @property
    def classes(self) -> int:
        """Number of classes C."""

    def logits(self) -> np.ndarray:
        """Predict the requested transfer samples in evaluation mode: `[M, C]` float32."""

    def private_logits(self) -> np.ndarray:
        """Predict the client's own training samples in evaluation mode: `[S, C]` float32."""

    def private_features(self) -> np.ndarray:
        """Return features of the client's own training samples in evaluation mode: `[S, F]` float32."""

    def private_labels(self) -> np.ndarray:
        """Return the labels of the client's own training samples: `[S]` int64."""

    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Return logits `[k, C]` float32 and labels `[k]` int64 of the `held_out_share` of own samples."""

    @property
    def round(self) -> int:
        """The round of the training or of the received guidance; 1-based."""

    @property
    def rounds(self) -> int:
        """Rounds of the whole run."""

    def network(self, of: str = OWN_NETWORK) -> nn.Module:
        """Return the model or an auxiliary network, for reading, inference, or the loss of a `local_step`."""

    def label_counts(self) -> np.ndarray:
        """Count the client's training samples of each class: `[C]` int64."""

    def class_means(self, of: Literal["logits", "features"]) -> np.ndarray:
        """Return mean outputs over own samples of each class, `[C, K]` float32; 0 without samples."""

    def weights(self, of: str = OWN_NETWORK) -> dict[str, np.ndarray]:
        """Return copies of all parameters and buffers by name."""

    def load_weights(self, weights: Arrays, of: str = OWN_NETWORK) -> None:
        """Replace all parameters and buffers."""

    def trainable(self) -> tuple[str, ...]:
        """Return the names of the weights that gradients train, in the model's order."""

    def frozen(self, weights: Arrays, of: str = OWN_NETWORK) -> nn.Module:
        """Return a network with other weights, in evaluation mode; gradients flow to its inputs."""

    @property
    def batch_size(self) -> int:
        """Batch size of local training."""

    def own_rows(self) -> np.ndarray:
        """Return this round's training samples `[n]`, ascending, without held-out ones."""

    def generator(self, purpose: str) -> np.random.Generator:
        """Return the random generator for a purpose on this client in this round."""

    def private_gradient(self, weights: Arrays, of: Sequence[str]) -> PrivateGradient:
        """Return a function for the gradient in the weights `of`, in evaluation mode with `weights`."""

    def supermask(self) -> Supermask:
        """Return the mask of the present task. Needs `masks`."""

    @property
    def last_fit(self) -> FitSummary:
        """The last local training. Needs `weights`."""

    @property
    def learned(self) -> tuple[int, ...]:
        """The client's finished tasks of a stream, this round's included, in order."""

    def learner_tells(self, tasks: Sequence[int]) -> dict[str, np.ndarray]:
        """Return the learner's arrays by name; `tasks` are places of earlier tasks in the client's order."""

    def tell_learner(self, arrays: Arrays) -> None:
        """Hand the strategy's arrays to its learner."""

    def distil(self, targets: np.ndarray, samples: np.ndarray | None = None) -> None:
        """Distil targets `[K, C]` of transfer samples `[K]` at once; samples None: the whole transfer set."""

    def trial(self, targets: np.ndarray, samples: np.ndarray, asked: np.ndarray) -> TrialLogits:
        """Distil targets `[K, C]` for one epoch, predict the `asked` samples `[A]`, and restore the model.

        Trials of a round share initial weights and order of samples. Needs `trials`.
        """


class ServerModels(Protocol):
    """Models of the server, for predictions and training on the transfer set or uploads."""

    @property
    def clients(self) -> int:
        """Number of clients N of the whole federation."""

    def architecture_of(self, client: int) -> Architecture:
        """Return the architecture of a client's model."""

    def clients_of(self, architecture: Architecture) -> list[int]:
        """Return all clients with models of an architecture, ascending."""

    def architecture(self, model: str, args: Mapping[str, Any]) -> Architecture:
        """Return the architecture of a zoo model or a plug-in."""

    def initial_weights(self, architecture: Architecture) -> dict[str, np.ndarray]:
        """Return the weights of a fresh model, equal at each call."""

    def trainable(self, architecture: Architecture) -> tuple[str, ...]:
        """Return the names of the weights that gradients train, in the model's order."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of a sample, ``(channels, height, width)`` or ``(features,)``."""

    def network(self, architecture: Architecture, weights: Arrays | None = None) -> nn.Module:
        """Return a new network on the CPU; without weights it is initialised, equally at each call."""

    def seed(self, purpose: str) -> int:
        """Return the seed of the strategy's own draws for a purpose in this round."""

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

        Targets are arrays `[M, ...]`. After `patience` epochs (0: never) without a lower loss on the
        `validation` share of samples, training stops and restores the best weights.
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
        """Train a network in place on arrays `[n, ...]`, on the CPU with one thread, at a constant `lr`.

        `loss` maps the network and a batch `[B, ...]` of each array to a scalar. The server draws batches.
        """
