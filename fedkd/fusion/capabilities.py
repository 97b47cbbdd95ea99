"""Needs and abilities of a fusion strategy."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fedkd.fusion.kinds import Kind
from fedkd.plugins import contain_plugin

if TYPE_CHECKING:
    from fedkd.fusion.strategy import FusionStrategy

Need = Literal[
    "gradients",  # clients trained by gradients
    "features",  # models with `features` and `head`
    "equal_features",  # penultimate features of one width
    "linear_head",  # heads that are one linear layer with biases
    "weights",  # weights to send
    "masks",  # a learner whose masks clients can share
    "adapter",  # adapters of all clients, on one base
    "one_architecture",  # one architecture for all clients
    "plain_sgd",  # local steps of SGD without momentum
    "transfer_labels",  # labels of the transfer set on the server
    "server",  # models on the server
    "class_stream",  # a class-incremental stream that all clients learn in step
    "normalised_samples",  # real samples with mean 0 and variance 1
    "parts",  # names of weights that tell body and head apart
    "like_heads",  # heads of one shape
    "three_classes",  # three classes or more
    "graph",  # clients that exchange over a graph
]

Guided = Literal["all_alike", "each", "nobody"]
"""Receivers of guidance: all clients the same, each client its own, or none."""

PredictionForm = Literal["classes", "gaussian"]
"""Form of predictions: probabilities of classes, or Gaussians of numeric targets."""
CLASSES: Set[PredictionForm] = frozenset({"classes"})
GAUSSIANS: Set[PredictionForm] = frozenset({"gaussian"})
ANY_FORM: Set[PredictionForm] = CLASSES | GAUSSIANS

REACH: Mapping[Guided, str] = {
    "all_alike": "all clients, the same: participants with the next message, others with the next training",
    "each": "the participants, each its own, with the next message",
    "nobody": "nobody",
}
"""Receivers of guidance in words."""

OverGraph = Literal["each", "mixed"]
"""Work of a strategy without a server.

`each`: every client calls `fuse` on its own upload and its neighbours'. `mixed`: `fuse` gets the mixing
weights of the graph (`Knowledge.mixing`).
"""

PREDICTIONS: Mapping[str, Kind] = {"logits": Kind.TRANSFER_LOGITS, "label_counts": Kind.LABEL_COUNTS}
"""Arrays of the default `upload`."""

TAUGHT: Mapping[str, str] = {"targets": "k C", "samples": "k<M"}
"""Shapes of targets and of their transfer samples' indices; without `samples`, they cover all."""


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Needs and abilities of a strategy, for checks, estimates and engines.

    A strategy states it once: ``capabilities: ClassVar[Capabilities] = Capabilities(guides="each")``. If it
    depends on hyper-parameters, a `functools.cached_property` returns it. `dataclasses.replace` changes that
    of a base class.

    Attributes:
        needs: Requirements on clients, data and server; other scenarios are refused.
        accepts: Forms of predictions that it can fuse; `ANY_FORM` if it fuses none, or only weights.
        sends: Upload in words; ``"nothing"``: no message carries knowledge.
        kinds: Kind of each array of an `upload`, by name; a missing one is `Kind.OTHER`. The server refuses
            uploads that lack one of these.
        optional: Arrays of `kinds` that an upload may lack.
        shapes: Shapes of arrays by name if the kind leaves them open, as in `fedkd.fusion.forms`.
        receives: Shapes of guidance arrays by name, for a strategy with its own `apply`; None: not stated. A
            name may end with ``*``. Deployed clients refuse other arrays.
        label_counts: True if clients also upload their label histogram.
        upload_changes: True if the first upload differs in size from later ones.
        sends_steps: True if a client uploads the difference to a model that came with the message.
        guides: Receivers of guidance; None: not stated.
        reach: Receivers in words; empty: those of `guides`.
        uses_local_loss: True if guidance is kept and shapes local training, not distilled at once.
        infers_from_guidance: True if kept guidance answers evaluations (`LocalObjective.infer`).
        uses_transfer_set: True if clients or server use transfer samples.
        requests_vary: True if each round needs other transfer samples than `request` shows.
        pretrain_epochs: Epochs of training on the labelled transfer set before the first round.
        trains_jointly: True if the paper adds the loss on private samples to distillation.
        averages: Average of predictions in `fuse`; filters fill in with it.
        mixes: True if personal targets are means of `Guidance.mixed` under weights.
        over_graph: Work without a server; None: it needs one.
        requires_sync: Reason to wait for all clients of a round, as a predicate of the strategy; None: none.
        weighs_age: True if `fuse` weighs rows by `Knowledge.freshness`.
        stale_decay: Weight factor per round of age of an absent client's last knowledge; None: left out.
        by_flower: True if one of Flower's strategies is the server's part.
        brings_model: True if every message carries the whole model, and clients keep none.
        shares_model: True if all clients of an architecture hold one model after fusion.
        pools: True if models train on all clients' samples.
        keeps_models: Number of further models of the client's own kind.
        learner: Name of the only learner that fits; None: any.
        held_out_share: Share of training samples that every client keeps apart (`ClientView.held_out`).
        trials: Number of trials of guidance before a client learns one (`ClientView.trial`).
        trial_share: Share of the transfer set that a trial learns from.
        generated_samples: Samples that the server generates and every client keeps.
        counts_rounds: True if a round depends on the number of rounds; the run cannot be continued.
    """

    needs: Set[Need] = frozenset()
    accepts: Set[PredictionForm] = CLASSES
    sends: str = "logits"
    kinds: Mapping[str, Kind] = field(default_factory=lambda: PREDICTIONS)
    optional: Set[str] = frozenset({"label_counts"})
    shapes: Mapping[str, str] = field(default_factory=dict)
    receives: Mapping[str, str] | None = None
    label_counts: bool = False
    upload_changes: bool = False
    sends_steps: bool = False
    guides: Guided | None = None
    reach: str = ""
    uses_local_loss: bool = False
    infers_from_guidance: bool = False
    uses_transfer_set: bool = True
    requests_vary: bool = False
    pretrain_epochs: int = 0
    trains_jointly: bool = False
    averages: Literal["probabilities", "logits"] = "probabilities"
    mixes: bool = False
    over_graph: OverGraph | None = None
    requires_sync: str | None = None
    weighs_age: bool = False
    stale_decay: float | None = None
    by_flower: bool = False
    brings_model: bool = False
    shares_model: bool = False
    pools: bool = False
    keeps_models: int = 0
    learner: str | None = None
    held_out_share: float = 0.0
    trials: int = 0
    trial_share: float = 1.0
    generated_samples: int = 0
    counts_rounds: bool = False

    @property
    def audience(self) -> str:
        """Receivers of guidance in words; empty if not stated."""
        return self.reach or ("" if self.guides is None else REACH[self.guides])

    @property
    def fuses_by_task(self) -> bool:
        """True if knowledge of a stream is fused for each task; a plain average takes all."""
        return "weights" not in self.needs or "server" in self.needs


def capabilities_of(strategy: FusionStrategy | type[FusionStrategy]) -> Capabilities:
    """Return the capabilities of a strategy, of a class at its defaults."""
    found: Any = strategy.capabilities
    if isinstance(found, Capabilities):
        return found
    try:
        with contain_plugin():
            return strategy().capabilities if callable(strategy) else Capabilities()
    except Exception:  # a plug-in may lack defaults
        return Capabilities()
