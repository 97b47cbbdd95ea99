"""A fusion strategy: hyper-parameters, one pure `fuse`, and the seven hooks that it may define."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from fedkd.fusion.auxiliary import AuxNetworks
from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.kinds import Kind
from fedkd.fusion.local_objective import LocalObjective
from fedkd.fusion.server_cost import ServerCost
from fedkd.fusion.views import Arrays, ClientView, Distillation, Network, ServerModels

if TYPE_CHECKING:
    from torch import Tensor


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
            for a strategy with a `stale_decay`, with a cache of knowledge, or where rounds are asynchronous.
        new: Whether each row has come with this round, however old it is, `[N]` bool; None: those of age 0
            have.
        freshness: What each row counts because of its age, `[N]` in (0, 1], where the server does not wait
            for everybody and leaves that to a strategy that `weighs_age`; None: all rows count alike.
        awaited: Uploads of this round that come with a later call of `fuse`, because a client has sent two of
            them; above 0 only where rounds are asynchronous and the strategy `brings_model`.
        payload: What else the strategy's `upload` sends, by name: one array per client, in client order, of
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
    payload: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)
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
        for name, arrays in self.payload.items():
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


class FusionStrategy(ABC):
    """Base of every fusion strategy: a frozen dataclass whose fields are its hyper-parameters.

    A whole strategy, in a file beside the scenario that says ``strategy = "mine:Boldest"``::

        @dataclass(frozen=True)
        class Boldest(FusionStrategy):
            name: ClassVar[str] = "boldest"
            capabilities: ClassVar[Capabilities] = Capabilities(guides="all_alike")
            temperature: Annotated[float, Field(gt=0, description="Softness of the targets.")] = 1.0

            def fuse(self, knowledge, memory):
                q = softmax(knowledge.logits, self.temperature)          # [N, M, C]
                best = q.max(axis=-1).argmax(axis=0)                     # [M]: the surest client
                return Guidance(targets=q[best, np.arange(q.shape[1])])  # [M, C], shared by all

            def loss(self, student_logits, targets):
                return kd_kl(student_logits, targets, self.temperature)

    Seven hooks make a strategy: `prepare`, `request`, `fuse` and `end_task` on the server; `upload`, `apply`
    and `loss` on a client. Mixins add others: `LocalObjective` for local training, `AuxNetworks` for networks
    beside the client's model, `ServerCost` for estimates.
    """

    paper: ClassVar[str] = ""
    """Source of the strategy; "after …" if it takes an idea of a paper and not its method."""
    recordable: ClassVar[bool] = False
    """Whether `loss` computes the same from the same tensors at each call, and does nothing else. Then steps
    of distillation may be recorded and replayed. A class that overrides `loss` declares it anew."""
    source_note: ClassVar[str] = ""
    """Difference to that paper in one line, or that none was found."""
    if TYPE_CHECKING:  # class variables, as a rule; of some strategies, each instance has its own

        @property
        def name(self) -> str:
            """Name in scenarios and reports."""

        @property
        def capabilities(self) -> Capabilities:
            """What the strategy needs and can."""

    else:
        capabilities = Capabilities()

    def for_clients(self, *, one_architecture: bool) -> Self:
        """Return the strategy with the defaults that the clients' models decide: ``replace(self, share=…)``.

        Args:
            one_architecture: Whether all clients have models of one.

        Raises:
            UserError: A hyper-parameter asks for what these models cannot do.
        """
        return self

    # On the server ------------------------------------------------------------------------------------

    def prepare(self, server: ServerModels) -> Guidance | None:
        """Return the guidance of round 0 for every client, such as ``Guidance(None, shared=first_weights)``.

        Its memory reaches the first `fuse`. Called only for a strategy that needs `weights` or a `server`.
        """
        return None

    def request(
        self, transfer_size: int, memory: Mapping[str, np.ndarray], generator: np.random.Generator
    ) -> np.ndarray | None:
        """Return the round's transfer samples, such as ``np.arange(100)``.

        Args:
            transfer_size: Number of transfer samples M.
            memory: `Guidance.memory` of the previous round.
            generator: The round's own generator.

        Returns:
            Indices `[M]`, ascending; None: all.
        """
        return None

    @abstractmethod
    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return guidance: ``Guidance(targets=softmax(knowledge.logits).mean(axis=0))``.

        It is pure: equal knowledge and memory give equal guidance.

        Args:
            knowledge: Uploads of the round's clients.
            memory: `Guidance.memory` of the previous round; in the first that of `prepare`, or empty.
        """

    def end_task(self, knowledge: Knowledge, guidance: Guidance) -> Guidance:
        """Return guidance with which all clients end a task: ``replace(guidance, shared=…)``.

        Args:
            knowledge: Uploads of the round's clients; `classes_met` is set.
            guidance: As `fuse` made it.
        """
        return guidance

    # On a client --------------------------------------------------------------------------------------

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return arrays to send after local training, such as ``{"logits": client.logits()}``, the default.

        Arrays of a stacked kind reach `fuse` under names of their own, all others in `Knowledge.payload`.
        """
        arrays = {"logits": client.logits()}
        if self.capabilities.label_counts:
            arrays["label_counts"] = client.label_counts()
        return arrays

    def apply(self, client: ClientView, guidance: Arrays) -> Distillation | None:
        """Apply guidance; return what the client distils, by default ``(guidance["targets"], None)``.

        The client minimises `loss` on these transfer samples. Executors take several clients' distillations
        together. A strategy that needs the distilled model within `apply` calls `ClientView.distil`.
        """
        found = self.targets_of(client, guidance)
        if found is None:
            raise KeyError(f"'{self.name}' gave guidance without targets; its `apply` has to say what to do")
        return found

    def loss(self, student_logits: Tensor, targets: Tensor) -> Tensor:
        """Return the distillation loss of a batch, such as ``kd_kl(student_logits, targets)``.

        Args:
            student_logits: The client's own logits, `[B, C]`.
            targets: The same samples' rows of its guidance, `[B, C]`.

        Returns:
            A scalar.
        """
        raise NotImplementedError(f"'{self.name}' does not define `loss`, so its clients cannot distil")

    # For measurements and checks ----------------------------------------------------------------------

    def targets_of(self, client: ClientView, guidance: Arrays) -> Distillation | None:
        """Return targets `[K, C]` of guidance and their samples `[K]`, as ``(guidance["targets"], None)``.

        Fidelity is measured by them. None: guidance has no targets. Samples None: all transfer samples.
        """
        if "targets" not in guidance:
            return None
        return guidance["targets"], guidance.get("samples")

    def taught_samples(self, guidance: Arrays) -> int:
        """Return the transfer samples of a pass, for simulated time: ``len(guidance["targets"])``."""
        return len(guidance["targets"]) if "targets" in guidance else 0

    def probabilities(self, targets: np.ndarray) -> np.ndarray:
        """Return targets `[M, C]` as probabilities, such as ``softmax(targets)`` where they are logits."""
        return targets

    def client_metrics(self, client: ClientView) -> Mapping[str, float]:
        """Return metrics of a client to record with each evaluation, such as ``{"beta": 2.0}``."""
        return {}

    def kinds_of(self, upload: Arrays) -> dict[str, Kind]:
        """Return the kind of each array of an upload; the names may be the model's."""
        return {name: self.capabilities.kinds.get(name, Kind.OTHER) for name in upload}

    def misfit(self, upload: Arrays, sizes: Mapping[str, int], network: Network | None) -> str | None:
        """Return the reason to refuse arrays that do not fit each other: ``"has 3 masks for 2 tasks"``."""
        return None


MIXINS = (LocalObjective, AuxNetworks, ServerCost)


def overrides(strategy: FusionStrategy | type[FusionStrategy], hook: str) -> bool:
    """Return whether a strategy defines a hook of the base or of a mixin itself."""
    own = getattr(strategy if isinstance(strategy, type) else type(strategy), hook, None)
    return own is not None and all(own is not getattr(base, hook, None) for base in (FusionStrategy, *MIXINS))


def teaches_targets(strategy: FusionStrategy) -> bool:
    """Return whether clients distil targets of transfer samples, so that they can rehearse them."""
    return not strategy.capabilities.uses_local_loss and overrides(strategy, "loss")


def answers_otherwise(strategy: FusionStrategy) -> bool:
    """Return whether evaluations may be answered by something else than the client's model."""
    return strategy.capabilities.infers_from_guidance or overrides(strategy, "predictor")
