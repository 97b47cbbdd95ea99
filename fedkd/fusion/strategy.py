"""What a fusion strategy is: hyper-parameters, one pure `fuse`, and the loss its clients minimise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict

from fedkd.errors import TrainingDiverged

if TYPE_CHECKING:
    from torch import Tensor


STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
"""Configuration of our strategies' pydantic dataclasses: a field's docstring is its description."""


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What the clients of one round uploaded, in client order.

    Row `n` of every array belongs to ``clients[n]``. With partial participation the round's clients are a
    subset of the federation, so ``clients[n]`` need not be `n`.

    Args:
        clients: Client indices, ascending; N of them.
        logits: Predictions on the transfer set, `[N, M, C]` float32 or float16; None where nothing is sent.
        samples: Number of training samples of each client, `[N]` int64.
        label_counts: Training samples of each class, `[N, C]`; only for a strategy that `needs_label_counts`.
        age: Rounds since each row was computed, `[N]`; 0 is this round, and None means all are. Above 0 only
            for a strategy with a `stale_decay`.

    Raises:
        ValueError: The arrays disagree about N.
        TrainingDiverged: A client uploaded logits that are not numbers; fused, they would spoil everyone's.
    """

    clients: tuple[int, ...]
    logits: np.ndarray | None
    samples: np.ndarray
    label_counts: np.ndarray | None = None
    age: np.ndarray | None = None

    def __post_init__(self) -> None:
        if list(self.clients) != sorted(set(self.clients)):
            raise ValueError(f"clients must ascend without repeats, got {self.clients}")
        for name in ("logits", "samples", "label_counts", "age"):
            array = getattr(self, name)
            if array is not None and len(array) != len(self.clients):
                raise ValueError(f"{name} has {len(array)} rows for {len(self.clients)} clients")
        if self.logits is not None:
            if self.logits.ndim != 3:
                raise ValueError(f"logits must be [N, M, C], got shape {self.logits.shape}")
            broken = np.isnan(self.logits).any(axis=(1, 2))
            if broken.any():
                client = self.clients[int(broken.argmax())]
                raise TrainingDiverged(f"client {client} uploaded logits that are not numbers")


@dataclass(frozen=True, eq=False)
class Guidance:
    """What the clients receive back.

    Args:
        targets: What each client learns from on the transfer set, float32: personal `[N, M, C]`, or one
            `[M, C]` shared by all. What the numbers are (probabilities, logits) is between the strategy's
            `fuse` and its `loss`. None: there is nothing to learn.
        weights: How much each receiver (row) took from each sender (column), `[N, N]`; a diagnostic.
        memory: Arrays that the strategy wants to be handed next round; they are saved in checkpoints.
    """

    targets: np.ndarray | None
    weights: np.ndarray | None = None
    memory: dict[str, np.ndarray] = field(default_factory=dict)


class FusionStrategy(ABC):
    """Base of every fusion strategy: a frozen dataclass whose fields are its hyper-parameters.

    The whole of a new strategy, in a file beside the scenario that says ``strategy = "mine:Boldest"``::

        @dataclass(frozen=True)
        class Boldest(FusionStrategy):
            name: ClassVar[str] = "boldest"
            temperature: Annotated[float, Field(gt=0, description="Softness of the targets.")] = 1.0

            def fuse(self, knowledge, memory):
                q = softmax(knowledge.logits, self.temperature)          # [N, M, C]
                best = q.max(axis=-1).argmax(axis=0)                     # [M]: who is surest of sample i
                return Guidance(targets=q[best, np.arange(q.shape[1])])  # [M, C], shared by all

            def loss(self, student_logits, targets):
                return kd_kl(student_logits, targets, self.temperature)

    `fuse` runs on the server and is pure: same knowledge and memory, same guidance. Whatever must survive
    from one round to the next goes through `Guidance.memory`, so that a resumed run repeats an unbroken one.
    """

    name: ClassVar[str]
    """Name in scenarios and reports."""
    sends: ClassVar[Literal["logits", "nothing"]] = "logits"
    """What a client uploads."""
    paper: ClassVar[str] = ""
    """Where the strategy comes from."""

    @property
    def needs_label_counts(self) -> bool:
        """Whether clients must also upload their label histogram, which tells the server more about them."""
        return False

    @property
    def stale_decay(self) -> float | None:
        """Weight factor per round of age of a missing client's last knowledge; None: it is left out."""
        return None

    @abstractmethod
    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Turn all clients' knowledge into every client's guidance.

        Args:
            knowledge: What the round's clients uploaded.
            memory: `Guidance.memory` of the previous round; empty in the first.
        """

    @abstractmethod
    def loss(self, student_logits: Tensor, targets: Tensor) -> Tensor:
        """Return what a client minimises on a batch of the transfer set, a scalar.

        Args:
            student_logits: The client's own logits, `[B, C]`.
            targets: The same samples' rows of its guidance, `[B, C]`.
        """
