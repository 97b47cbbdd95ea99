"""What a fusion strategy is: hyper-parameters, one pure `fuse`, and what its clients send and learn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fedkd.fusion.client_half import ClientHalf
from fedkd.fusion.extent import TRAINING, Extent
from fedkd.fusion.views import Arrays, ClientView, ServerModels


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What the clients of one round uploaded, in client order.

    Row `n` of every array belongs to ``clients[n]``. With partial participation the round's clients are a
    subset of the federation, so ``clients[n]`` need not be `n`.

    Args:
        clients: Client indices, ascending; N of them.
        logits: Predictions on the transfer set, `[N, M, C]` float32 or float16; None where nothing is sent.
        samples: Number of training samples of each client, `[N]` int64.
        label_counts: Training samples of each class, `[N, C]`; only for a strategy with `label_counts`.
        age: Rounds since each row was computed, `[N]`; 0 is this round, and None means all are. Above 0 only
            for a strategy with a `stale_decay`, with a bank of knowledge, or where rounds are asynchronous.
        new: Whether each row has come with this round, however old it is, `[N]` bool; None: those of age 0
            have.
        freshness: What each row counts because of its age, `[N]` in (0, 1], where the server does not wait
            for everybody and leaves that to a strategy that `weighs_age`; None: all rows count alike.
        awaited: Uploads of this round that come with a later call of `fuse`, because a client has sent two of
            them; above 0 only where rounds are asynchronous and the strategy `brings_model`.
        extra: What else the strategy's `upload` sends, by name: one array per client, in client order, of
            shapes that may differ.
        request: Indices of the transfer samples asked for this round, `[M]`; None: the whole transfer set.
        labels: True labels of these samples, `[M]` int64; only for a strategy that needs `transfer_labels`.
        seed: What draws of the strategy's own derive from.
        classes_met: The outputs `[K]`, ascending, that stand for the classes of all tasks so far, in a round
            with which all clients end a task together to begin another; None in every other round.
        server: What the server can compute with; only for a strategy that needs `weights` or a `server`.
        round: The round, 1-based.
        rounds: Rounds of the whole run.
        mixing: How much each client takes of each over the round's links, receiver first, `[N, N]`; only for
            a strategy that is `mixed` over a graph.

    Raises:
        ValueError: The arrays disagree about N.
    """

    clients: tuple[int, ...]
    logits: np.ndarray | None
    samples: np.ndarray
    label_counts: np.ndarray | None = None
    age: np.ndarray | None = None
    new: np.ndarray | None = None
    freshness: np.ndarray | None = None
    awaited: int = 0
    extra: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)
    request: np.ndarray | None = None
    labels: np.ndarray | None = None
    server: ServerModels | None = None
    seed: int = 0
    classes_met: tuple[int, ...] | None = None
    round: int = 1
    rounds: int = 1
    mixing: np.ndarray | None = None

    def __post_init__(self) -> None:
        if list(self.clients) != sorted(set(self.clients)):
            raise ValueError(f"clients must ascend without repeats, got {self.clients}")
        for name in ("logits", "samples", "label_counts", "age", "freshness"):
            array = getattr(self, name)
            if array is not None and len(array) != len(self.clients):
                raise ValueError(f"{name} has {len(array)} rows for {len(self.clients)} clients")
        if self.logits is not None and self.logits.ndim != 3:
            raise ValueError(f"logits must be [N, M, C], got shape {self.logits.shape}")
        for name, arrays in self.extra.items():
            if len(arrays) != len(self.clients):
                raise ValueError(f"{name} has {len(arrays)} arrays for {len(self.clients)} clients")

    @property
    def has_come(self) -> np.ndarray:
        """Whose knowledge has come with this round, `[N]` bool: what is made for each is for them alone.

        All others are there by what they said before, and do not receive it: whoever remembers what clients
        have been told, or have to show for it, does so of these.
        """
        if self.new is not None:
            return self.new
        return np.ones(len(self.clients), dtype=bool) if self.age is None else self.age == 0


@dataclass(frozen=True, eq=False)
class Guidance:
    """What the clients receive back.

    Args:
        targets: What each client learns from on the transfer set, float32: personal `[N, M, C]`, or one
            `[M, C]` shared by all. What the numbers are (probabilities, logits) is between the strategy's
            `fuse` and its `loss`. None: there is nothing to learn.
        weights: How much each receiver (row) took from each sender (column), `[N, N]`; a diagnostic.
        distances: What decided about the weights: how far each sender is from each receiver, `[N, N]`; a
            diagnostic.
        mixed: Probabilities `[N, M, C]` of which personal targets are the means under `weights`, so that it
            can be told what each of them adds; None: targets are made otherwise. A diagnostic.
        memory: Arrays that the strategy wants to be handed next round; they are saved in checkpoints.
        shared: Further arrays that every client receives, by name.
        personal: Further arrays of each client, in client order.
        absent: What clients that took no part receive besides the shared arrays, by client index.
        for_absent: What every other client that took no part receives besides the shared arrays.

    Guidance without anything personal is for every client of the federation, whoever took part; personal
    guidance for those it was made for. Who took part is guided by the next message, whichever it is. Who did
    not is guided by the next one of the method's own, that of a training as a rule, and by the newest of all
    that it missed: so how often a run is evaluated never changes what anybody learns. Weights take the place
    of others, so they come along with an evaluation as well.
    """

    targets: np.ndarray | None
    weights: np.ndarray | None = None
    memory: dict[str, np.ndarray] = field(default_factory=dict)
    shared: Arrays = field(default_factory=dict)
    personal: Sequence[Arrays] = ()
    absent: Mapping[int, Arrays] = field(default_factory=dict)
    for_absent: Arrays | None = None
    distances: np.ndarray | None = None
    mixed: np.ndarray | None = None

    @property
    def is_personal(self) -> bool:
        """Whether clients receive different things."""
        return bool(self.personal) or (self.targets is not None and self.targets.ndim == 3)


class FusionStrategy(ClientHalf):
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
    server_epochs: int = 0
    """Passes over the transfer set in which a `server_model` is trained; a hyper-parameter of this name."""

    # On the server ------------------------------------------------------------------------------------

    def prologue(self, server: ServerModels) -> Guidance | None:
        """Return what every client receives with its first message, as the guidance of round 0.

        Its memory is what the first `fuse` is handed. Asked only of a strategy that needs `weights` or a
        `server`.
        """
        return None

    def request(
        self, transfer_size: int, memory: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> np.ndarray | None:
        """Return the transfer samples that clients shall predict this round, ascending; None: all of them.

        Args:
            transfer_size: Number of transfer samples M.
            memory: `Guidance.memory` of the previous round.
            generator: The round's own generator.
        """
        return None

    def server_work(self, extent: Extent) -> float:
        """Return what a fusion computes, about, in operations of products and convolutions.

        By default what it takes to train a `server_model` and ask it; to add up what was sent is next to
        nothing.

        Args:
            extent: How much there is in a round.
        """
        return extent.model * extent.samples * (TRAINING * self.server_epochs + 1)

    @abstractmethod
    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Turn all clients' knowledge into every client's guidance.

        Args:
            knowledge: What the round's clients uploaded.
            memory: `Guidance.memory` of the previous round; in the first that of the `prologue`, or empty.
        """

    # On a client --------------------------------------------------------------------------------------

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return what a client sends after local training: by default its logits, `[M, C]`.

        Arrays of a kind that is stacked reach `fuse` under names of their own, all others in
        `Knowledge.extra`.
        """
        arrays = {"logits": client.logits()}
        if self.capabilities.label_counts:
            arrays["label_counts"] = client.label_counts()
        return arrays
