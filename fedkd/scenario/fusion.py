"""The `[fusion]` section of a scenario, and the tables in it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from fedkd.explain import show_value
from fedkd.scenario.sections import PositiveInt, Section

FLOWER_PREFIX = "flwr:"
"""Begins the names of Flower's own strategies."""


def _number_or_auto(value: Any) -> Any:
    """Refuse what is neither, in one line: of a union each part would complain for itself."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "auto" or (is_number and 0.0 <= value <= 1e6):
        return value
    raise ValueError(f'must be a number from 0 to 1e6 or "auto", got {show_value(value)}')


class Bank(Section):
    """The knowledge bank: what every client last knew of each task, kept on the server and fused along."""

    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.98
    """What knowledge counts, a round of its age: 0.98 halves it in 34 rounds, 1 never lets it fade. A
    strategy's own `stale_decay` takes its place."""
    megabytes: Annotated[float, Field(gt=0.0)] | None = None
    """Most that is kept; beyond, the oldest knowledge is forgotten first. Absent: no bound."""


class Orthogonal(Section):
    """Federated orthogonal training: the average moves only where the inputs of old tasks' layers are not."""

    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.94
    """ε: share of the energy of a layer's inputs, over all clients, that is protected after every task.
    Higher forgets less and leaves less room; on permuted MNIST the paper takes 0.96 where samples are dealt
    evenly and 0.94 where by labels."""
    threshold_increment: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """What ε grows by with every task, up to 1; 0.001 in the paper on streams other than permuted MNIST."""
    energy: Literal["measured", "sketch"] = "measured"
    """Whose energy ε is a share of. `measured`: that of the inputs, estimated without bias from a tenth of
    the sketch's columns. `sketch`: that of the sketch, as in the authors' code. Its directions hold more of
    the sketch than of the inputs: on permuted MNIST 0.94 protects 0.92, with 100 columns 0.79."""
    width: Annotated[int, Field(ge=2)] | None = None
    """Columns of a client's sketch of a layer's inputs; absent: as many as the layer has inputs. Fewer weigh
    less. A task adds no more directions than a sketch has columns, so that narrow ones may fall short of ε:
    `protected_energy` says by how much."""


class Filter(Section):
    """Which predictions on transfer samples are heard: each is weighed in [0, 1], and dropped if it weighs
    too little. A sample of which nobody's prediction is left is not taught."""

    by: Literal["confidence", "agreement", "relevance"] = "agreement"
    """`confidence`: 1 − entropy / log C. `agreement`: the share of the others' `votes` for the same class.
    `relevance`: how likely the sample is of classes that the receiver lacks; for strategies
    that mix predictions for each client (`knfu`, `kta`, `ktpfl`, `comet`)."""
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """The least weight that is kept; 0 keeps all. Absent: 0.5, for `agreement` 0.3."""
    votes: Literal["class_shares", "equal"] = "class_shares"
    """What a vote of `agreement` counts. `class_shares`: the share of the class in the client's predictions,
    its own claim, so that two colluding clients defeat the filter. `equal`: the same for all clients;
    colluders pass once they are more than `threshold` of the others, and a class that few clients know is
    dropped."""
    quantile: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """In its place the share that is dropped of what filters before it have left, whatever it weighs."""
    at: Literal["fusion", "upload"] = "fusion"
    """`fusion`: the server drops what it was sent. `upload`: a client does not send what it drops, and a bit
    for each sample instead; by `confidence` alone, for which it needs nobody else."""

    @model_validator(mode="after")
    def _check(self) -> Filter:
        if self.threshold is not None and self.quantile is not None:
            raise ValueError("has a threshold and a quantile; must be one of them")
        if self.votes == "equal" and self.by != "agreement":
            raise ValueError(f"votes = 'equal' needs by = 'agreement', got '{self.by}', which takes no votes")
        if self.at == "upload" and self.by != "confidence":
            raise ValueError(
                f"at = 'upload' needs by = 'confidence', got '{self.by}', which others decide about"
            )
        return self


class Relations(Section):
    """What clients learn of how transfer samples are related: of their features, batch by batch, beside what
    the strategy teaches of each sample. Nothing more is sent: the relations are those of the targets."""

    kind: Literal["trg", "rkd"] = "trg"
    """`trg`: which others a sample is most like, as a distribution over the batch, compared by KL. `rkd`: how
    far samples are apart, and at what angles, compared by Huber losses; it wants larger batches less."""
    weight: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    """What the loss on relations counts beside the strategy's."""
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 0.1
    """τ of `trg`: the smaller, the more the nearest alone count."""
    distance: Annotated[float, Field(ge=0.0, le=1e6)] = 25.0
    """Weight of distances in `rkd`; 25 in the paper."""
    angle: Annotated[float, Field(ge=0.0, le=1e6)] = 50.0
    """Weight of angles in `rkd`; 50 in the paper. They take B³ numbers for a batch of B."""


class Fusion(Section):
    """The fusion strategy, its own hyper-parameters, and how guidance is distilled.

    Keys that are not listed here are the strategy's own (`beta`, `temperature`, …), checked against it.
    """

    model_config = ConfigDict(extra="allow")

    strategy: str = "knfu"
    """A strategy of fedkd by name, Flower's as `"flwr:FedAdam"`, your own as `"pkg.mod:Class"`."""
    distill_epochs: Annotated[int, Field(ge=0)] = 1
    """Passes over the transfer set per round."""
    distill_batch_size: PositiveInt | None = None
    """Samples a distillation step; absent: `training.batch_size`."""
    distill_lr: Annotated[float, Field(gt=0.0)] | None = None
    """Learning rate of distillation; absent: `training.lr`."""
    private_weight: Annotated[float, Field(ge=0.0, le=1e6)] | None = None
    """γ: weight of the cross entropy on private batches that is added to the distillation loss. Absent: as
    `training.recipe` says; with `alternating` 1 for strategies whose papers train on both at once (`cronus`,
    `comet`), 0 for all others."""
    upload_top: PositiveInt | None = None
    """Classes of each uploaded prediction that are sent, the likeliest ones; the server spreads the rest
    evenly over the others. A value and a byte a class. Absent: all classes."""
    filters: list[Filter] = []
    """Which predictions are heard, one filter after another, with any strategy whose clients send predictions
    on transfer samples and learn targets of them. Absent: all."""
    relations: Relations | None = None
    """Have clients learn how transfer samples are related, too, for strategies whose guidance is targets and
    networks with features; `{}` for its defaults. Absent: each sample's target alone."""
    rehearse: Annotated[float, Field(ge=0.0, le=1e6)] | None = None
    """ρ: weight of the distillation loss on a transfer batch of the last targets, added in every step of
    local training. It keeps local training from undoing distillation. Absent: 0, with the recipe `joint` 0.3.
    Strategies without targets refuse it. A step then costs two forward and backward passes."""
    rehearse_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """What ρ is multiplied by for every round of newer guidance that a client has missed; try 0.9 where few
    clients take part."""
    own_prior: Annotated[
        Annotated[float, Field(ge=0.0, le=1e6)] | Literal["auto"], BeforeValidator(_number_or_auto)
    ] = 0.0
    """κ: evaluations take `argmax z_c + κ log π_c` for a client's answer, π the shares of classes in its own
    training samples, on both test sets. It changes nothing that is learned or sent. Above 0 a client leans to
    its own classes: better on data like its own, worse on all others; 0.1 or 0.2 is enough. `"auto"`: each
    client has its own, the smallest of 0, 0.05, 0.1, 0.2, 0.3, 0.5 and 1 whose accuracy on the samples that
    it keeps apart (`training.held_out`) is within one standard error of the best."""
    upload_dtype: Literal["float32", "float16"] = "float32"
    """Precision of uploaded logits."""
    bank: Bank | None = None
    """Keep the last knowledge of every client about each task: who meets a task late is taught by those who
    learned it before, and who takes part by those who are away. Absent: only the round's is fused."""
    backward: bool = False
    """Whether clients are also taught their old tasks by those who meet them later, with the `bank`
    (federated backward transfer). What of an old task may change then is for the learner to say."""
    orthogonal: Orthogonal | None = None
    """Have an average of Flower's strategies keep out of what old tasks have used, in a stream that all
    clients learn in step (FOT); `{}` for its defaults. Absent: the average moves freely."""

    @property
    def from_flower(self) -> bool:
        """Whether the strategy is one of Flower's, which exchange weights instead of knowledge."""
        return self.strategy.startswith(FLOWER_PREFIX)
