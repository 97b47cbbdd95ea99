"""Tables of a scenario: what clients hold and are, how they train, when, and whom they hear."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Spread = Annotated[float, Field(ge=0.0, le=10.0)]
"""σ of the logarithm of a factor: 0, all clients are alike; 1, one in three is 2.7 times faster or slower."""
Percent = Annotated[int, Field(ge=1, le=100)]


class Section(BaseModel):
    """A table of the scenario file: immutable, strict about keys and types (`"3"` is no number)."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Partition(Section):
    """How the private samples are dealt to clients."""

    scheme: str = "dirichlet"
    """`iid`; `dirichlet` (each class is dealt by proportions drawn from Dir(α)); `dirichlet-per-client` (each
    client has its own label mix drawn from Dir(α), equal sizes); `circle` (classes on a circle, and client n
    has those around its place, so that neighbours by number are alike); `shards` (label-sorted shards);
    `quantity` (equal label mix, sizes drawn from Dir(α)); `natural` (each client one of the owners that the
    data name); `file` (indices from a JSON file); or `"pkg.mod:function"`, called as `function(labels,
    clients, generator, **args)` for one list of indices per client."""
    args: dict[str, Any] = {}
    """Keyword arguments of a plugged-in scheme."""
    alpha: Annotated[float, Field(gt=0.0, le=1e9)] = 0.5
    """Concentration of the Dirichlet draws: small is heterogeneous."""
    samples_per_client: PositiveInt | None = None
    """Samples of every client (`quantity`: on average) before its local test split; absent: all are dealt
    out."""
    replacement: bool = False
    """Whether clients draw from all samples, so that several may hold the same, and there may be more
    clients than samples. No client holds one twice, or trains on a test sample of another. For `iid`,
    `dirichlet`, `dirichlet-per-client` and `quantity`, with `samples_per_client`."""
    shards_per_client: PositiveInt = 2
    """Label-sorted shards a client holds (`shards`)."""
    min_samples: PositiveInt = 10
    """No client holds fewer samples than this."""
    path: str | None = None
    """JSON file with one list of sample indices per client (`file`); may lie beside the scenario file."""


class Transfer(Section):
    """The unlabelled samples that every participant holds."""

    source: str = "holdout"
    """`holdout` (kept apart from the private samples), another data set's name, or `noise`."""
    args: dict[str, Any] = {}
    """Arguments of the other data set, as `data.args`."""
    size: Annotated[int, Field(ge=0)] = 1000
    """Number of transfer samples M; 0 only for strategies that do without (`local`, `fd`, averaging, …)."""
    alpha: Annotated[float, Field(gt=0.0, le=1e9)] | None = None
    """α of the Dirichlet label mix of held-out samples: small is unbalanced. Absent: the data set's mix."""


class Data(Section):
    """The data set and how it is dealt out."""

    dataset: str = "digits"
    """`digits` (embedded), `mnist`, `fashion-mnist`, `cifar10`, `cifar100`, `synthetic` (made for every
    client), `npz`, `image-folder`, or `"pkg.mod:function"`."""
    args: dict[str, Any] = {}
    """Arguments of the data set: `path` for `npz` and `image-folder`, `alpha`, `beta`, … for `synthetic`,
    keywords of a plugged-in function."""
    root: str | None = None
    """Folder of the data sets, beside the scenario file or in the working folder; absent: `$FEDKD_DATA`,
    else a user cache."""
    clients: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Number of clients N."""
    partition: Partition = Partition()
    transfer: Transfer = Transfer()
    normalise: bool = True
    """Whether samples are brought to mean 0 and variance 1. Otherwise models see them as they are stored, but
    for uint8, which is divided by 255; other integers, such as token ids, stay integers (int64)."""
    test_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of each client's samples kept for its local accuracy; 0: there are no local test sets."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of each client's training samples that is held out, by class share, and replaces all test
    samples: a client's own are its local test set, those of all the common one. For choosing
    hyper-parameters, as `fedkd tune` does. Absent: tests use test samples."""
    test_size: PositiveInt | None = None
    """Size of the common test set, drawn by class share from the data set's own test split; absent: all."""


class ClientGroup(Section):
    """One entry of the mix of client models."""

    model: str = "cnn"
    """Zoo name (`mlp`, `lenet`, `cnn`, `resnet8`, `resnet20`; `random-forest`, `gradient-boosting`, `sgd`) or
    `"pkg.mod:factory"`."""
    share: Annotated[float, Field(gt=0.0)] = 1.0
    """Relative number of clients with this model; shares need not sum to 1."""
    args: dict[str, Any] = {}
    """Keyword arguments of the model."""


class EarlyStopping(Section):
    """Ends local training by the loss on kept samples, at the best weights, those before training included.

    Kept samples are drawn once per client and task. They are never trained on, but count among the client's
    training samples. Clients that would keep fewer than 2, and models that are no networks, train all epochs.
    """

    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the client's training samples that is kept apart, by class share."""
    patience: PositiveInt = 3
    """Epochs in a row without a lower loss on them after which the round's training ends."""


class Training(Section):
    """How every client trains on its own samples; distillation has the optimiser's settings in common."""

    recipe: Literal["alternating", "joint"] = "alternating"
    """How a client trains on private samples and targets. `alternating`: one after the other, unless the
    strategy's paper trains on both at once. `joint`: each along with the other; `fusion.ce_weight` is
    then 1 and `fusion.kd_weight` 0.3, where they are absent."""
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    """The optimiser."""
    optimizer_state: Literal["fresh", "kept"] = "fresh"
    """What it remembers (momentum, moments): `fresh` each round; `kept` over a client's rounds and tasks.
    Distillation always starts fresh."""
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    """Learning rate."""
    momentum: Fraction = 0.0
    """Momentum of `sgd` and `rmsprop`."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """L2 penalty (`sgd`, `adam`, `rmsprop`) or decoupled decay (`adamw`)."""
    schedule: Literal["constant", "cosine", "step", "exponential"] = "constant"
    """The learning rate over rounds: `cosine` falls to zero; `step` drops every few, `exponential` every
    round."""
    lr_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Factor of every drop; absent: 0.1 for `step`, 0.99 for `exponential`."""
    lr_step_rounds: PositiveInt | None = None
    """Rounds between two drops of `step`, which has to say."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    """Clip the gradient to this norm; absent: no clipping."""
    batch_size: PositiveInt = 32
    """Samples a batch."""
    accumulate: PositiveInt = 1
    """Batches an optimiser step, whose gradients are averaged, for batches beyond the memory; distillation
    too."""
    local_epochs: PositiveInt = 1
    """Passes over the client's own samples per round."""
    early_stopping: EarlyStopping | None = None
    """Whether local training may end before its last epoch; absent: never."""
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of each client's training samples, by class share, that it chooses by and never trains on
    (`fusion.logit_adjustment = "auto"`, `chosen_beta`). Absent: 0.2 where something is chosen, else none.
    Those of `early_stopping` serve for both. A client that would keep fewer than 2 keeps none."""
    autocast: bool = False
    """bfloat16 autocast on a GPU; ignored on a CPU, where it is slower."""
    executor: Literal["loop", "vectorised", "auto"] = "loop"
    """How a process trains its clients: one after the other (`loop`), or those of one model together, a
    step of all at once (`vectorised`), which pays on a GPU. The two round differently. `auto` measures
    once which is quicker, and writes it into the run folder's scenario."""
    vmap_size: Annotated[int, Field(ge=1, le=4096)] = 16
    """Clients that `vectorised` trains together, at most: their weights lie in memory once more."""
    fast: bool = True
    """Whether steps are recorded and replayed, gradients factored, and layers computed by fedkd's kernels.
    `false` runs plain code: the same results, but for the order of sums."""


class Clock(Section):
    """Simulated time of jobs and messages, drawn from the seed.

    Where rounds wait for everybody it changes nothing that is learned.
    """

    work: Literal["drawn", "steady", "steps"] = "drawn"
    """Time of a job, times a factor of the client: `drawn` (`seconds` · |N(0, 1)|, anew for every job),
    `steady` (`seconds`), `steps` (`seconds` a batch, those of distillation included)."""
    seconds: Annotated[float, Field(gt=0.0, le=1e9)] = 1.0
    """Simulated seconds, of a client whose factor is 1."""
    spread: Spread = 1.0
    """σ of a client's factor, which is log-normal and drawn once: 0, all are equally fast."""
    bandwidth: Annotated[float, Field(gt=0.0, le=1e9)] | None = None
    """Megabits a second of a client's network whose factor is 1, each way; absent: bytes take no time."""
    bandwidth_spread: Spread = 0.0
    """σ of the factor of a client's bandwidth, log-normal and drawn once."""
    latency: Annotated[float, Field(ge=0.0, le=1e9)] = 0.0
    """Simulated seconds that a message takes however small it is, each way."""
    targets: list[Percent] = Field(default=[50, 70, 80, 90], max_length=100)
    """Accuracies in percent; the summary says when the federation's mean reached each of them first."""


class Asynchronous(Section):
    """Rounds that wait for nobody: a round is a new version of what the server has, after so many uploads."""

    buffer: PositiveInt = 10
    """K: uploads after which the server fuses. 1 takes every upload as it comes; FedBuff's paper takes 10."""
    concurrency: PositiveInt | None = None
    """Clients at work at a time, at most; whoever comes next is drawn from the seed. Absent: all of them."""
    staleness: Annotated[float, Field(ge=0.0, le=100.0)] = 0.5
    """a of s(τ) = (1 + τ)^−a, the weight of an upload that began τ versions ago; a strategy's
    `stale_decay` wins."""


class Topology(Section):
    """Who hears whom. Beside a star there is no server: clients send what they know to each other."""

    graph: Literal[
        "star", "ring", "k_regular", "random_regular", "matching", "one_peer_exponential", "complete", "file"
    ] = "star"
    """`star`: a server hears everybody. Without one: `ring` (client n hears n ± 1); `k_regular` (n ± 1 … n ±
    k/2); `random_regular` (k/2 random rings one upon the other, drawn each round); `matching` (random pairs,
    drawn each round); `one_peer_exponential` (in round t client n hears n + 2^((t − 1) mod ⌈log₂ N⌉) alone);
    `complete`; `file` (as `path` says)."""
    k: Annotated[int, Field(ge=2)] | None = None
    """Others that a client hears in `k_regular` and `random_regular`, even and below N (fewer where random
    rings share links); absent: 4."""
    order: Literal["numbered", "shuffled"] = "numbered"
    """Seats in `ring`, `k_regular` and `one_peer_exponential`: by client number, or drawn once for the
    run."""
    path: str | None = None
    """JSON file with whom each client hears (`file`): `{"hears": [[1, 2], [0], [0]]}`, or with such a list
    for each round, taken in turn, `{"rounds": [[…], […]]}`; or what a run has left in `topology.json`."""
    mixing: Literal["metropolis", "push_sum"] | None = None
    """How `gossip` mixes weights: `metropolis`, 1 / (1 + the larger number of links), needs links both
    ways; `push_sum` does not. Absent: `metropolis` in every round that allows it."""
    relay: bool = False
    """Whether clients pass on the newest that they heard of others, one link a round. The strategy weighs
    it by its age, so it needs a `stale_decay`."""
