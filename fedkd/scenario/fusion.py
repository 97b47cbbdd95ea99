"""The `[fusion]` section of a scenario and its tables."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from fedkd.plugins import show_value
from fedkd.scenario.sections import PositiveInt, Section

FLOWER_PREFIX = "flwr:"  # begins the names of Flower's own strategies


def _number_or_auto(value: Any) -> Any:
    """Refuse other values in one line; a union would report two."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "auto" or (is_number and 0.0 <= value <= 1e6):
        return value
    raise ValueError(f'must be a number from 0 to 1e6 or "auto", got {show_value(value)}')


class CacheSettings(Section):
    """Cache of every client's last knowledge of each task, fused in later rounds too."""

    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.98
    """Weight decay of old knowledge per round; 0.98 halves it in 34 rounds. A strategy's `stale_decay` has
    precedence."""
    megabytes: Annotated[float, Field(gt=0.0)] | None = None
    """Largest size; the oldest knowledge is dropped first. Absent: no limit."""


class Orthogonal(Section):
    """Federated orthogonal training (FOT): protect the input subspaces of old tasks."""

    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.94
    """ε: share of the energy of a layer's inputs, over all clients, that every task protects. A larger ε
    reduces forgetting and plasticity. The paper's values on permuted MNIST: 0.96 for even partitions, 0.94
    for partitions by label."""
    threshold_increment: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Increase of ε with every task, up to 1. The paper uses 0.001 on streams other than permuted MNIST."""
    energy: Literal["measured", "sketch"] = "measured"
    """Energy that ε refers to. `measured`: an unbiased estimate of the inputs' energy, from a tenth of the
    sketch's columns. `sketch`: the energy of the sketch, as in the authors' code. On permuted MNIST 0.94 of
    it protects 0.92 of the inputs' energy, and 0.79 with 100 columns."""
    width: Annotated[int, Field(ge=2)] | None = None
    """Columns of a client's sketch of a layer's inputs; absent: as many as inputs. A task adds at most this
    many directions, so a narrow sketch may miss ε (see `protected_energy`)."""


class Filter(Section):
    """Filter of predictions on transfer samples, by weights in [0, 1]."""

    by: Literal["confidence", "agreement", "relevance"] = "agreement"
    """Weight of a prediction. `confidence`: 1 − entropy / log C. `agreement`: the share of the other clients'
    `votes` for the same class. `relevance`: probability of classes that the receiver lacks (`knfu`, `kta`,
    `ktpfl`, `comet`)."""
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Smallest weight that is kept; 0 keeps all. Absent: 0.3 for `agreement`, else 0.5."""
    votes: Literal["class_shares", "equal"] = "class_shares"
    """Weight of a vote in `agreement`. `class_shares`: the client's reported share of the predicted class;
    two colluding clients defeat the filter. `equal`: colluders need more than `threshold` of the other
    clients, but classes that few clients know are dropped."""
    quantile: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of the predictions to drop, lowest weights first, instead of a threshold. It counts predictions
    that earlier filters kept."""
    at: Literal["fusion", "upload"] = "fusion"
    """Place of the filter. `fusion`: the server drops predictions. `upload`: the client uploads the kept
    predictions, and one bit per sample (`confidence` only)."""

    @model_validator(mode="after")
    def _check(self) -> Filter:
        if self.threshold is not None and self.quantile is not None:
            raise ValueError("must have a threshold or a quantile, got both")
        if self.votes == "equal" and self.by != "agreement":
            raise ValueError(f"votes = 'equal' needs by = 'agreement', got '{self.by}'")
        if self.at == "upload" and self.by != "confidence":
            raise ValueError(f"at = 'upload' needs by = 'confidence', got '{self.by}'")
        return self


class Relations(Section):
    """Relational distillation: match relations between samples of a batch in the features."""

    kind: Literal["trg", "rkd"] = "trg"
    """`trg`: similarities to the rest of the batch, as a distribution, compared by KL. `rkd`: distances
    and angles, compared by Huber losses; it depends less on large batches."""
    weight: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    """Weight of the relation loss; the strategy's loss has weight 1."""
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 0.1
    """τ of `trg`; smaller values emphasise the nearest samples."""
    distance: Annotated[float, Field(ge=0.0, le=1e6)] = 25.0
    """Weight of distances in `rkd`; 25 in the paper."""
    angle: Annotated[float, Field(ge=0.0, le=1e6)] = 50.0
    """Weight of angles in `rkd`; 50 in the paper. A batch of B samples takes B³ numbers."""


class Fusion(Section):
    """The fusion strategy, its hyper-parameters, and the distillation.

    All other keys are hyper-parameters of the strategy (`beta`, `temperature`, …).
    """

    model_config = ConfigDict(extra="allow")

    strategy: str = "knfu"
    """Name of a strategy, of Flower's as `"flwr:FedAdam"`, or a plug-in as `"pkg.mod:Class"`."""
    distill_epochs: Annotated[int, Field(ge=0)] = 1
    """Passes over the transfer set per round."""
    distill_batch_size: PositiveInt | None = None
    """Samples per distillation step; absent: `training.batch_size`."""
    distill_lr: Annotated[float, Field(gt=0.0)] | None = None
    """Learning rate of distillation; absent: `training.lr`."""
    ce_weight: Annotated[float, Field(ge=0.0, le=1e6)] | None = None
    """γ: weight of the cross entropy on private batches in distillation. Absent: by `training.recipe`. With
    `alternating` it is 1 for strategies that train on both in their papers (`cronus`, `comet`), else 0."""
    upload_top: PositiveInt | None = None
    """Number of most likely classes to upload per prediction; the server spreads the rest of the probability
    evenly. Absent: all."""
    filters: list[Filter] = []
    """Filters of predictions, applied in order, for strategies that turn predictions on transfer samples into
    targets. Absent: no filter."""
    relations: Relations | None = None
    """Relational distillation, for networks with features and strategies with targets; `{}` for its defaults.
    Absent: targets only."""
    kd_weight: Annotated[float, Field(ge=0.0, le=1e6)] | None = None
    """ρ: weight of the distillation loss in every step of local training, on a transfer batch with the last
    targets. Local training then undoes less of the distillation, at twice the compute per step. Absent: 0,
    or 0.3 with the recipe `joint`. Strategies without targets refuse it."""
    kd_weight_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Factor of ρ for every round of fusion that a client missed; try 0.9 under partial participation."""
    logit_adjustment: Annotated[
        Annotated[float, Field(ge=0.0, le=1e6)] | Literal["auto"], BeforeValidator(_number_or_auto)
    ] = 0.0
    """κ: logit adjustment in evaluations. Clients predict `argmax z_c + κ log π_c` on both test sets, where π
    are the class shares of their training samples. Training and messages are unchanged. Larger values raise
    local and lower global accuracy; 0.1 or 0.2 is enough. `"auto"`: each client takes the smallest of 0,
    0.05, 0.1, 0.2, 0.3, 0.5 and 1 within one standard error of the best on its held-out samples
    (`training.held_out`)."""
    upload_dtype: Literal["float32", "float16"] = "float32"
    """Precision of uploaded logits and weights."""
    knowledge_cache: CacheSettings | None = None
    """Cache every client's last knowledge of each task and fuse it in later rounds, so that absent clients
    and clients at other tasks contribute. Absent: only the round's knowledge is fused."""
    backward_transfer: bool = False
    """Federated backward transfer: clients that learn a task later improve clients that learned it before.
    Needs the `knowledge_cache`. The learner limits the changes of old tasks."""
    orthogonal: Orthogonal | None = None
    """Federated orthogonal training (FOT) with a Flower strategy, in a stream in lockstep; `{}` for its
    defaults. Absent: the average is not projected."""

    @property
    def from_flower(self) -> bool:
        """True for Flower's strategies, which exchange weights."""
        return self.strategy.startswith(FLOWER_PREFIX)
