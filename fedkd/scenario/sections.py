"""Tables of a scenario: data, models, training, time and topology."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Spread = Annotated[float, Field(ge=0.0, le=10.0)]
"""σ of a factor's logarithm: 0, all clients are alike; 1, one in three is 2.7 times faster or slower."""
Percent = Annotated[int, Field(ge=1, le=100)]


class Section(BaseModel):
    """A table of the scenario file: immutable, strict about keys and types."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Partition(Section):
    """Partition of the private samples among clients."""

    scheme: str = "dirichlet"
    """`iid`; `dirichlet` (each class by proportions drawn from Dir(α)); `dirichlet-per-client` (each client's
    label mix drawn from Dir(α), equal sizes); `circle` (classes on a circle; client n has those around its
    place, so that neighbours by number are alike); `shards` (label-sorted shards); `quantity` (equal label
    mix, sizes drawn from Dir(α)); `natural` (each client one of the data's owners); `file` (indices from a
    JSON file); or `"pkg.mod:function"`, called as `function(labels, clients, generator, **args)` for one
    list of indices per client."""
    args: dict[str, Any] = {}
    """Keyword arguments of a plugged-in scheme."""
    alpha: Annotated[float, Field(gt=0.0, le=1e9)] = 0.5
    """Concentration of the Dirichlet draws: small is heterogeneous."""
    samples_per_client: PositiveInt | None = None
    """Samples of every client (`quantity`: on average) before its local test split; absent: all."""
    replacement: bool = False
    """Draw each client's samples from all samples: clients may share some, and outnumber them. No client
    holds one twice, or trains on a test sample of another. For `iid`, `dirichlet`, `dirichlet-per-client`
    and `quantity`, with `samples_per_client`."""
    shards_per_client: PositiveInt = 2
    """Label-sorted shards of a client (`shards`)."""
    min_samples: PositiveInt = 10
    """Smallest number of samples of a client."""
    path: str | None = None
    """JSON file with one list of sample indices per client (`file`); may lie beside the scenario file."""


class Transfer(Section):
    """The unlabelled samples that every participant holds."""

    source: str = "holdout"
    """`holdout` (kept apart from the private samples), another data set's name, or `noise`."""
    args: dict[str, Any] = {}
    """Arguments of the other data set, as `data.args`."""
    size: Annotated[int, Field(ge=0)] = 1000
    """Number of transfer samples M; 0 only for strategies that need none (`local`, `fd`, averaging, …)."""
    alpha: Annotated[float, Field(gt=0.0, le=1e9)] | None = None
    """α of the Dirichlet label mix of held-out samples: small is unbalanced. Absent: the data set's mix."""


class Data(Section):
    """The data set and its partition."""

    dataset: str = "digits"
    """`digits` (embedded), `mnist`, `fashion-mnist`, `cifar10`, `cifar100`, `synthetic` (made for every
    client), `npz`, `table`, `image-folder`, or `"pkg.mod:function"`."""
    args: dict[str, Any] = {}
    """Arguments of the data set: `path` for `npz`, `table` and `image-folder`, `columns` of a `table`,
    `alpha`, `beta`, … for `synthetic`, keywords of a plugged-in function."""
    root: str | None = None
    """Folder of the data sets, relative to the scenario file or the working folder; absent: `$FEDKD_DATA`,
    else a user cache."""
    clients: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Number of clients N."""
    partition: Partition = Partition()
    transfer: Transfer = Transfer()
    normalise: bool = True
    """Bring samples to mean 0 and variance 1. `false` passes them as stored, with uint8 divided by 255; other
    integers, such as token ids, stay integers (int64)."""
    test_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of each client's samples kept for its local accuracy; 0: no local test sets."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of each client's training samples, by class share, that replaces all test samples: its own are
    its local test set, all together the common one. For choosing hyper-parameters, as `fedkd tune` does.
    Absent: tests use test samples."""
    test_size: PositiveInt | None = None
    """Size of the common test set, drawn by class share from the data set's own test split; absent: all."""


class ClientGroup(Section):
    """One entry of the mix of client models."""

    model: str = "cnn"
    """Name of a model (`mlp`, `lenet`, `cnn`, `resnet8`, `resnet20`; `random-forest`, `gradient-boosting`,
    `sgd`) or `"pkg.mod:factory"`."""
    share: Annotated[float, Field(gt=0.0)] = 1.0
    """Relative number of clients with this model; shares need not sum to 1."""
    args: dict[str, Any] = {}
    """Keyword arguments of the model."""


class EarlyStopping(Section):
    """End local training by the loss on kept samples, at the best weights.

    Kept samples are drawn once per client and task. They are never trained on, but count as training samples.
    Clients that would keep fewer than 2, and models that are no networks, train all epochs.
    """

    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the client's training samples that is kept, by class share."""
    patience: PositiveInt = 3
    """Epochs in a row without a lower loss on them that end the round's training."""


class Training(Section):
    """Local training; distillation shares the optimiser's settings."""

    recipe: Literal["alternating", "joint"] = "alternating"
    """Training on private samples and targets. `alternating`: one after the other, unless the strategy's
    paper trains on both at once. `joint`: both together; absent, `fusion.ce_weight` is then 1 and
    `fusion.kd_weight` 0.3."""
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    """The optimiser."""
    optimizer_state: Literal["fresh", "kept"] = "fresh"
    """Momentum and moments: `fresh` each round; `kept` over a client's rounds and tasks. Distillation always
    starts fresh."""
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    """Learning rate."""
    momentum: Fraction = 0.0
    """Momentum of `sgd` and `rmsprop`."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """L2 penalty (`sgd`, `adam`, `rmsprop`) or decoupled decay (`adamw`)."""
    schedule: Literal["constant", "cosine", "step", "exponential"] = "constant"
    """Learning rate: `cosine` falls to zero; `step` drops every few rounds, `exponential` every round."""
    lr_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Factor of every drop; absent: 0.1 for `step`, 0.99 for `exponential`."""
    lr_step_rounds: PositiveInt | None = None
    """Rounds between two drops; required by `step`."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    """Clip the gradient to this norm; absent: no clipping."""
    batch_size: PositiveInt = 32
    """Samples a batch."""
    accumulate: PositiveInt = 1
    """Batches an optimiser step, with averaged gradients, to save memory; distillation too."""
    local_epochs: PositiveInt = 1
    """Passes over the client's own samples per round."""
    early_stopping: EarlyStopping | None = None
    """Allow local training to end before its last epoch; absent: never."""
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of each client's training samples, by class share, kept for its choices
    (`fusion.logit_adjustment = "auto"`, `chosen_beta`) and never trained on. Absent: 0.2 if there is a
    choice, else 0. Those of `early_stopping` serve both. A client that would keep fewer than 2 keeps none."""
    autocast: bool = False
    """bfloat16 autocast on a GPU; ignored on a CPU, where it is slower."""
    executor: Literal["loop", "vectorised", "auto"] = "loop"
    """How a process trains its clients: one after the other (`loop`), or those of one model together
    (`vectorised`), which pays on a GPU. The two round differently. `auto` measures once which is quicker,
    and writes it into the run folder's scenario."""
    vmap_size: Annotated[int, Field(ge=1, le=4096)] = 16
    """Largest number of clients that `vectorised` trains together, with a second copy of their weights."""
    fast: bool = True
    """Record and replay steps, factor gradients, and compute layers by fedkd's kernels. `false` runs plain
    code: the same results up to the order of sums."""


class Clock(Section):
    """Simulated time of jobs and messages, drawn from the seed."""

    work: Literal["drawn", "steady", "steps"] = "drawn"
    """Time of a job, times a factor of the client. `drawn`: `seconds` · |N(0, 1)|, anew for every job;
    `steady`: `seconds`; `steps`: `seconds` a batch, those of distillation included."""
    seconds: Annotated[float, Field(gt=0.0, le=1e9)] = 1.0
    """Simulated seconds of a client with factor 1."""
    spread: Spread = 1.0
    """σ of a client's log-normal factor, drawn once; 0: all are equally fast."""
    bandwidth: Annotated[float, Field(gt=0.0, le=1e9)] | None = None
    """Megabits a second, each way, of a client with factor 1; absent: bytes take no time."""
    bandwidth_spread: Spread = 0.0
    """σ of the log-normal factor of a client's bandwidth, drawn once."""
    latency: Annotated[float, Field(ge=0.0, le=1e9)] = 0.0
    """Simulated seconds of every message, each way, besides those of its bytes."""
    targets: list[Percent] = Field(default=[50, 70, 80, 90], max_length=100)
    """Accuracies in percent; the summary has the time when the federation's mean first reached each."""


class Asynchronous(Section):
    """Asynchronous rounds: the server fuses after a number of uploads."""

    buffer: PositiveInt = 10
    """K: uploads after which the server fuses. 1 fuses each upload at once; FedBuff's paper has 10."""
    concurrency: PositiveInt | None = None
    """Most clients at work at a time; the next are drawn from the seed. Absent: all."""
    staleness: Annotated[float, Field(ge=0.0, le=100.0)] = 0.5
    """a of s(τ) = (1 + τ)^−a, the weight of an upload that began τ versions ago; a strategy's
    `stale_decay` has precedence."""


class Topology(Section):
    """Links between participants; graphs other than a star have no server."""

    graph: Literal[
        "star", "ring", "k_regular", "random_regular", "matching", "one_peer_exponential", "complete", "file"
    ] = "star"
    """`star`: a server and its clients. Without a server: `ring` (client n receives from n ± 1); `k_regular`
    (n ± 1 … n ± k/2); `random_regular` (k/2 overlaid random rings, drawn each round); `matching` (random
    pairs, drawn each round); `one_peer_exponential` (in round t client n receives from
    n + 2^((t − 1) mod ⌈log₂ N⌉) alone); `complete`; `file` (see `path`)."""
    k: Annotated[int, Field(ge=2)] | None = None
    """Neighbours of a client in `k_regular` and `random_regular`, even and below N (fewer if random rings
    share links); absent: 4."""
    order: Literal["numbered", "shuffled"] = "numbered"
    """Seats in `ring`, `k_regular`, `one_peer_exponential`: by client number, or drawn once for the run."""
    path: str | None = None
    """JSON file of each client's senders (`file`): `{"hears": [[1, 2], [0], [0]]}`, or one such list for
    each round in turn, `{"rounds": [[…], […]]}`; or a run's `topology.json`."""
    mixing: Literal["metropolis", "push_sum"] | None = None
    """How `gossip` mixes weights. `metropolis`: 1 / (1 + the larger number of links), needs links both ways;
    `push_sum` works with all links. Absent: `metropolis` in every round that allows it."""
    relay: bool = False
    """Clients pass on the newest knowledge of others, one link a round. The strategy weighs it by its age,
    so it needs a `stale_decay`."""
