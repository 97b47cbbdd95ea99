"""A fusion strategy: hyper-parameters and seven hooks, among them a pure `fuse`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from fedkd.fusion.auxiliary import AuxNetworks
from fedkd.fusion.capabilities import Capabilities
from fedkd.fusion.kinds import Kind
from fedkd.fusion.local_objective import LocalObjective
from fedkd.fusion.math.weight_blocks import BlockedWeights
from fedkd.fusion.server_cost import ServerCost
from fedkd.fusion.views import Arrays, ClientView, Distillation, Network, ServerModels

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Knowledge:
    """Uploads of one round; row `n` of every array belongs to ``clients[n]``.

    With partial participation the round's clients are a subset of the federation.

    Args:
        clients: Client indices, ascending; N of them.
        logits: Predictions on the transfer set, `[N, M, C]` float32 or float16; None: not sent.
        samples: Number of training samples of each client, `[N]` int64.
        label_counts: Training samples of each class, `[N, C]`; only for a strategy with `label_counts`.
        age: Rounds since each row was computed, `[N]`; None: all are of this round. Above 0 only with a
            `stale_decay`, a cache of knowledge, or asynchronous rounds.
        new: True if a row came with this round, `[N]` bool; None: rows of age 0 did.
        freshness: Weight of each row by its age, `[N]` in (0, 1], in asynchronous rounds of a strategy that
            `weighs_age`; None: all rows count alike.
        awaited: Uploads of this round that come with a later call of `fuse`, since a client sent two; only
            in asynchronous rounds of a strategy that `brings_model`.
        payload: Other arrays of `upload` by name, one per client, of shapes that may differ.
        request: Indices of the round's transfer samples, `[M]`; None: the whole transfer set.
        labels: True labels of these samples, `[M]` int64; only for a strategy that needs `transfer_labels`.
        server: Models of the server; only for a strategy that needs `weights` or a `server`.
        seed: Source of the strategy's own draws.
        classes_met: Outputs `[K]`, ascending, of the classes of all tasks so far, if all clients end a task
            with this round and begin another; else None.
        round: The round, 1-based.
        rounds: Rounds of the whole run.
        mixing: Mixing weights over the round's links, receiver first, `[N, N]`; only for a strategy that is
            `mixed` over a graph.

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
        """Rows that came with this round, `[N]` bool; only their clients receive personal guidance."""
        if self.new is not None:
            return self.new
        return np.ones(len(self.clients), dtype=bool) if self.age is None else self.age == 0


@dataclass(frozen=True, eq=False)
class Guidance:
    """Targets or weights that the server sends back.

    Args:
        targets: Targets on the transfer set, float32: personal `[N, M, C]`, or `[M, C]` shared by all.
            `fuse` and `loss` decide whether they are probabilities or logits. None: nothing to distil.
        weights: Share that each receiver (row) took from each sender (column), `[N, N]`; a diagnostic.
        distances: Distance of each sender from each receiver, which decided the weights, `[N, N]`; a
            diagnostic.
        mixed: Probabilities `[N, M, C]`, if personal targets are their means under `weights`; else None. A
            diagnostic.
        memory: Arrays for the next round's `fuse`; checkpoints hold them.
        shared: Further arrays that every client receives, by name.
        personal: Further arrays of each client, in client order.
        absent: Arrays of clients that took no part, besides the shared ones, by client index.
        for_absent: Arrays of every other client that took no part, besides the shared ones.

    Guidance without personal arrays is for every client of the federation. Participants receive it with their
    next message of any kind. Absent clients receive the newest, as a rule with their next training. So
    results do not depend on the frequency of evaluations. Weights come with evaluations too.
    """

    targets: np.ndarray | None
    weights: np.ndarray | BlockedWeights | None = None
    memory: dict[str, np.ndarray] = field(default_factory=dict)
    shared: Arrays = field(default_factory=dict)
    personal: Sequence[Arrays] = ()
    absent: Mapping[int, Arrays] = field(default_factory=dict)
    for_absent: Arrays | None = None
    distances: np.ndarray | None = None
    mixed: np.ndarray | None = None
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_personal(self) -> bool:
        """True if clients receive different targets or weights."""
        return bool(self.personal) or (self.targets is not None and self.targets.ndim == 3)


class FusionStrategy(ABC):
    """Base of every fusion strategy: a frozen dataclass whose fields are its hyper-parameters.

    A whole strategy, in `mine.py` beside a scenario with ``strategy = "mine:Boldest"``::

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
    and `loss` on a client. Other methods have defaults: `for_clients`, `targets_of`, `taught_samples`,
    `probabilities`, `client_metrics`, `kinds_of`, `misfit`. Mixins add more: `LocalObjective`, `AuxNetworks`
    (``auxiliary.py``: networks beside the model), `ServerCost` and `ServerModel` (``server_cost.py``).
    """

    paper: ClassVar[str] = ""
    """Source of the strategy; "after …" if it takes an idea of a paper and not its method."""
    recordable: ClassVar[bool] = False
    """True if `loss` is a pure function of its tensors. Then steps
    of distillation may be recorded and replayed. A class that overrides `loss` declares it anew."""
    source_note: ClassVar[str] = ""
    """Difference to that paper in one line, or that none was found."""
    if TYPE_CHECKING:  # class variables, as a rule; of some strategies, each instance has its own
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

        @property
        def name(self) -> str:
            """Name in scenarios and reports."""

        @property
        def capabilities(self) -> Capabilities:
            """Needs and abilities of the strategy."""

    else:
        capabilities = Capabilities()

    def for_clients(self, *, one_architecture: bool) -> Self:
        """Return the strategy with defaults that depend on clients' models: ``replace(self, share=…)``.

        Raises:
            UserError: A hyper-parameter does not fit these models.
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
        """Return the round's transfer samples, ascending, such as ``np.arange(100)``; None: all.

        `memory` is `Guidance.memory` of the previous round, `generator` the round's own.
        """
        return None

    @abstractmethod
    def fuse(self, knowledge: Knowledge, memory: Mapping[str, np.ndarray]) -> Guidance:
        """Return guidance: ``Guidance(targets=softmax(knowledge.logits).mean(axis=0))``.

        It is pure: equal knowledge and memory give equal guidance. `memory` is `Guidance.memory` of the
        previous round, or of `prepare` in the first, or empty.
        """

    def end_task(self, knowledge: Knowledge, guidance: Guidance) -> Guidance:
        """Return the guidance at the end of a common task: ``replace(guidance, shared=…)``.

        `knowledge` has `classes_met`; `guidance` is that of `fuse`.
        """
        return guidance

    # On a client --------------------------------------------------------------------------------------

    def upload(self, client: ClientView) -> dict[str, np.ndarray]:
        """Return arrays to send after local training, such as ``{"logits": client.logits()}``, the default.

        Arrays of a stacked kind reach `fuse` by their own names, all others in `Knowledge.payload`.
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
            raise KeyError(f"'{self.name}' gave guidance without targets, so it must define `apply`")
        return found

    def loss(self, student_logits: Tensor, targets: Tensor) -> Tensor:
        """Return the distillation loss of a batch, such as ``kd_kl(student_logits, targets)``, a scalar.

        Both are `[B, C]`: the client's logits, and the same samples' targets.
        """
        raise NotImplementedError(f"'{self.name}' does not define `loss`, so its clients cannot distil")

    # For measurements and checks ----------------------------------------------------------------------

    def targets_of(self, client: ClientView, guidance: Arrays) -> Distillation | None:
        """Return targets `[K, C]` of guidance and their samples `[K]`, as ``(guidance["targets"], None)``.

        They serve to measure fidelity. None: guidance has no targets. Samples None: all transfer samples.
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
        """Return the kind of each array of an upload, which may be named like the model's weights."""
        return {name: self.capabilities.kinds.get(name, Kind.OTHER) for name in upload}

    def misfit(self, upload: Arrays, sizes: Mapping[str, int], network: Network | None) -> str | None:
        """Return the reason to refuse inconsistent arrays: ``"has 3 masks for 2 tasks"``."""
        return None


MIXINS = (LocalObjective, AuxNetworks, ServerCost)


def overrides_hook(strategy: FusionStrategy | type[FusionStrategy], hook: str) -> bool:
    """Return whether a strategy overrides a hook of the base or a mixin."""
    own = getattr(strategy if isinstance(strategy, type) else type(strategy), hook, None)
    return own is not None and all(own is not getattr(base, hook, None) for base in (FusionStrategy, *MIXINS))


def distils_targets(strategy: FusionStrategy) -> bool:
    """Return whether clients distil targets of transfer samples, and can rehearse them."""
    return not strategy.capabilities.uses_local_loss and overrides_hook(strategy, "loss")


def replaces_predictor(strategy: FusionStrategy) -> bool:
    """Return whether evaluations may use another predictor than the client's model."""
    return strategy.capabilities.infers_from_guidance or overrides_hook(strategy, "predictor")
