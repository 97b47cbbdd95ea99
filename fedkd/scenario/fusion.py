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
    """Every client's last knowledge of each task, fused again in later rounds."""

    decay: Annotated[float, Field(gt=0.0, le=1.0)] = 0.98
    """Factor of old knowledge per round: 0.98 halves it in 34. A strategy's `stale_decay` has precedence."""
    megabytes: Annotated[float, Field(gt=0.0)] | None = None
    """Maximum size; the oldest knowledge is dropped first. Absent: no bound."""


class Orthogonal(Section):
    """Federated orthogonal training, which protects the inputs of old tasks' layers."""

    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.94
    """ε: share of the energy of a layer's inputs, over all clients, that every task protects. Higher
    forgets less and leaves less room. The paper's values on permuted MNIST: 0.96 for even partitions, 0.94
    by labels."""
    threshold_increment: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Growth of ε with every task, up to 1; 0.001 in the paper on streams other than permuted MNIST."""
    energy: Literal["measured", "sketch"] = "measured"
    """Energy that ε refers to. `measured`: the inputs', an unbiased estimate from a tenth of the sketch's
    columns. `sketch`: the sketch's, as in the authors' code; on permuted MNIST 0.94 of it protects 0.92 of
    the inputs' energy, with 100 columns 0.79."""
    width: Annotated[int, Field(ge=2)] | None = None
    """Columns of a client's sketch of a layer's inputs; absent: as many as inputs. A task adds at most as
    many directions, so narrow sketches may miss ε: see `protected_energy`."""


class Filter(Section):
    """Filter of predictions on transfer samples, by weights in [0, 1]."""

    by: Literal["confidence", "agreement", "relevance"] = "agreement"
    """`confidence`: 1 − entropy / log C. `agreement`: the share of the others' `votes` for the same class.
    `relevance`: probability of classes that the receiver lacks (`knfu`, `kta`, `ktpfl`, `comet`)."""
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Smallest weight that is kept; 0 keeps all. Absent: 0.5, for `agreement` 0.3."""
    votes: Literal["class_shares", "equal"] = "class_shares"
    """Weight of a vote in `agreement`. `class_shares`: the share of the predicted class in the client's
    reported class shares; two colluders defeat the filter. `equal`: colluders need more than `threshold` of
    the others, and classes that few clients know are dropped."""
    quantile: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of predictions left by earlier filters that is dropped, instead of a threshold."""
    at: Literal["fusion", "upload"] = "fusion"
    """`fusion`: the server drops predictions. `upload`: the client sends a bit a sample instead
    (`confidence` only)."""

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
    """Relations of transfer samples in the targets, learned on features, batch by batch."""

    kind: Literal["trg", "rkd"] = "trg"
    """`trg`: similarities to the rest of the batch, as a distribution, compared by KL. `rkd`: distances
    and angles, compared by Huber losses; it depends less on large batches."""
    weight: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    """Weight of the loss on relations beside the strategy's."""
    temperature: Annotated[float, Field(ge=1e-3, le=1e3)] = 0.1
    """τ of `trg`; smaller values emphasise the nearest samples."""
    distance: Annotated[float, Field(ge=0.0, le=1e6)] = 25.0
    """Weight of distances in `rkd`; 25 in the paper."""
    angle: Annotated[float, Field(ge=0.0, le=1e6)] = 50.0
    """Weight of angles in `rkd`; 50 in the paper. They take B³ numbers for a batch of B."""


class Fusion(Section):
    """The fusion strategy, its hyper-parameters, and how guidance is distilled.

    All other keys are the strategy's own (`beta`, `temperature`, …).
    """

    model_config = ConfigDict(extra="allow")

    strategy: str = "knfu"
    """Name of a strategy, Flower's as `"flwr:FedAdam"`, your own as `"pkg.mod:Class"`."""
    distill_epochs: Annotated[int, Field(ge=0)] = 1
    """Passes over the transfer set per round."""
    distill_batch_size: PositiveInt | None = None
    """Samples a distillation step; absent: `training.batch_size`."""
    distill_lr: Annotated[float, Field(gt=0.0)] | None = None
    """Learning rate of distillation; absent: `training.lr`."""
    ce_weight: Annotated[float, Field(ge=0.0, le=1e6)] | None = None
    """γ: weight of the cross entropy on private batches in distillation. Absent: by `training.recipe`.
    With `alternating` that is 1 for strategies whose papers train on both (`cronus`, `comet`), else 0."""
    upload_top: PositiveInt | None = None
    """Likeliest classes sent of a prediction; the server spreads the rest evenly. Absent: all."""
    filters: list[Filter] = []
    """Filters of predictions, applied in turn, for strategies that turn predictions on transfer samples
    into targets. Absent: all predictions count."""
    relations: Relations | None = None
    """Teach relations of transfer samples too, for networks with features and strategies whose guidance is
    targets; `{}` for its defaults. Absent: targets only."""
    kd_weight: Annotated[float, Field(ge=0.0, le=1e6)] | None = None
    """ρ: weight of the distillation loss on a transfer batch of the last targets, in every step of local
    training. It keeps local training from undoing distillation, and doubles a step's passes. Absent: 0, or
    0.3 with the recipe `joint`. Strategies without targets refuse it."""
    kd_weight_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Factor of ρ for every round of guidance that a client missed; try 0.9 under partial participation."""
    logit_adjustment: Annotated[
        Annotated[float, Field(ge=0.0, le=1e6)] | Literal["auto"], BeforeValidator(_number_or_auto)
    ] = 0.0
    """κ: clients answer evaluations by `argmax z_c + κ log π_c`, π the class shares of their training
    samples, on both test sets. Learning and messages stay the same. Above 0, local accuracy rises and global
    accuracy falls; 0.1 or 0.2 is enough. `"auto"`: each client takes the smallest of 0, 0.05, 0.1, 0.2, 0.3,
    0.5 and 1 within one standard error of the best on its kept samples (`training.held_out`)."""
    upload_dtype: Literal["float32", "float16"] = "float32"
    """Precision of uploaded logits."""
    knowledge_cache: CacheSettings | None = None
    """Keep every client's last knowledge of each task and fuse it too, so that absent clients, or those at
    other tasks, still teach. Absent: only the round's knowledge is fused."""
    backward_transfer: bool = False
    """Clients that meet a task later also teach those that left it (federated backward transfer). Needs the
    `knowledge_cache`. The learner decides what of an old task may change."""
    orthogonal: Orthogonal | None = None
    """Keep a Flower strategy's average out of the inputs of old tasks, in a stream that all clients learn in
    lockstep (FOT); `{}` for its defaults. Absent: the average moves freely."""

    @property
    def from_flower(self) -> bool:
        """True for Flower's strategies, which exchange weights instead of knowledge."""
        return self.strategy.startswith(FLOWER_PREFIX)
