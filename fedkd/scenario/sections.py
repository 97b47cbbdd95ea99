"""Tables of a scenario: data, models, training, time and topology."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Spread = Annotated[float, Field(ge=0.0, le=10.0)]
"""σ of a factor's logarithm. 0: all clients are equal; 1: one in three is 2.7 times faster or slower."""
Percent = Annotated[int, Field(ge=1, le=100)]


class Section(BaseModel):
    """A table of the scenario file: immutable, strict about keys and types."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Partition(Section):
    """Partition of the private samples among clients."""

    scheme: str = "dirichlet"
    """`iid`; `dirichlet` (shares of each class drawn from Dir(α)); `dirichlet-per-client` (label mix of each
    client drawn from Dir(α), equal sizes); `circle` (classes on a circle; client n has the classes around its
    place, so clients with near numbers are similar); `shards` (label-sorted shards); `quantity` (equal label
    mix, sizes drawn from Dir(α)); `natural` (one owner of the data per client); `file` (indices from a JSON
    file); `"flwr_datasets:DirichletPartitioner"` or another partitioner of flwr-datasets, with its `args`; or
    `"pkg.mod:function"`, called as `function(labels, clients, generator, **args)`, which returns one list of
    indices per client."""
    args: dict[str, Any] = {}
    """Keyword arguments of a plug-in scheme."""
    alpha: Annotated[float, Field(gt=0.0, le=1e9)] = 0.5
    """Concentration α of the Dirichlet draws; small values are heterogeneous."""
    samples_per_client: PositiveInt | None = None
    """Samples of every client (`quantity`: on average) before its local test split; absent: all."""
    replacement: bool = False
    """Draw each client's samples from all samples, so that clients may share samples. No client holds a
    sample twice, or trains on a test sample of another. For `iid`, `dirichlet`, `dirichlet-per-client` and
    `quantity`, with `samples_per_client`."""
    shards_per_client: PositiveInt = 2
    """Label-sorted shards per client (`shards`)."""
    min_samples: PositiveInt = 10
    """Least number of samples of a client."""
    bins: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Quantile bins of the first target that stand for classes in regression (`dirichlet`,
    `dirichlet-per-client`); absent: 10."""
    path: str | None = None
    """JSON file with one list of sample indices per client (`file`), relative to the scenario file or the
    working folder."""


class Transfer(Section):
    """The transfer set: unlabelled samples that all participants hold."""

    source: str = "holdout"
    """`holdout` (taken from the private samples), another data set's name, or `noise`."""
    args: dict[str, Any] = {}
    """Arguments of the other data set, as `data.args`."""
    size: Annotated[int, Field(ge=0)] = 1000
    """Number of transfer samples M; 0 only for strategies without a transfer set (`local`, `fd`,
    averaging, …)."""
    alpha: Annotated[float, Field(gt=0.0, le=1e9)] | None = None
    """α of the Dirichlet label mix of `holdout` samples; small values are unbalanced. Absent: the mix of the
    data set."""
    owners: Annotated[list[str], Field(min_length=1)] | None = None
    """Owners whose samples may be held out, as the data set names them. Absent: all."""


class Data(Section):
    """The data set and its partition."""

    dataset: str = "digits"
    """`digits` (embedded), `mnist`, `fashion-mnist`, `cifar10`, `cifar100`, `synthetic` (generated for every
    client), `waveform` (generated series), `order`, `topics` (generated token ids), `npz`, `table`, `hf`
    (Hugging Face), `image-folder`, `ts` (series of the UCR and UEA archives), `vader` (sentences), `diabetes`
    (embedded, for regression), or `"pkg.mod:function"`."""
    task: Literal["classification", "regression"] | None = None
    """Kind of labels. `regression`: one or several numeric targets, standardised with training statistics;
    metrics are in their unit. Absent: `classification`."""
    head: Literal["gaussian", "mean"] | None = None
    """Outputs of models in regression. `gaussian`: mean and log variance of each target, trained by
    likelihood, so that fusion can weigh clients by their certainty; `mean`: the mean, by squared error.
    Absent: `gaussian`."""
    args: dict[str, Any] = {}
    """Arguments of the data set: `path` for `npz`, `table` and `image-folder`, `columns` of a `table`,
    `alpha`, `beta`, … for `synthetic`, keyword arguments of a plug-in function; and the `kind` of samples for
    `npz` and plug-in functions: `image`, `vector`, `series`, `text`, `graph` or `triple`, else inferred."""
    root: str | None = None
    """Folder of the data sets, relative to the scenario file or the working folder; absent: `$FEDKD_DATA`,
    else the user cache."""
    clients: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Number of clients N."""
    partition: Partition = Partition()
    transfer: Transfer = Transfer()
    normalise: bool = True
    """Scale samples to mean 0 and variance 1. `false` leaves them as stored, with uint8 divided by 255; other
    integers, such as token ids, stay integers (int64)."""
    test_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.2
    """Share of each client's samples for its local test set; 0: no local test sets."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of each client's training samples, stratified by class, that replaces the test samples: its own
    are the local test set, those of all clients the common one. For choosing hyper-parameters; `fedkd tune`
    sets it. Absent: tests use test samples."""
    test_size: PositiveInt | None = None
    """Size of the common test set, a stratified sample of the data set's test split; absent: all of it."""

    @property
    def is_regression(self) -> bool:
        """True if labels are numeric targets."""
        return self.task == "regression"


class Adapter(Section):
    """Low-rank adapters on a frozen network: the weight of a layer is W + (α/r) B A, with B 0 at first.

    Only A, B, the head and the buffers are trained and sent.
    """

    kind: Literal["lora"] = "lora"
    """The kind of adapter."""
    rank: PositiveInt = 8
    """r: rows of A and columns of B; at most the smaller side of each adapted weight."""
    alpha: Annotated[float, Field(gt=0.0, le=1e6)] = 16.0
    """α: the change is scaled by α/r."""
    targets: Literal["linear", "conv", "all"] | Annotated[list[str], Field(min_length=1)] = "linear"
    """Adapted layers: all linear ones, all 2-D convolutions, both, or those whose names match a pattern of a
    list, such as `["body.*"]`."""
    train_head: bool = True
    """Train the head (the layer `head`, or the last linear one) whole, as classification on a frozen base
    usually does. `false` freezes it, and it may get an adapter."""


class ClientGroup(Section):
    """A group of clients with the same model."""

    model: str = "cnn"
    """Name of a model (`mlp`, `lenet`, `cnn`, `resnet8`, `resnet20`; `random-forest`, `gradient-boosting`,
    `sgd`) or `"pkg.mod:factory"`."""
    share: Annotated[float, Field(gt=0.0)] = 1.0
    """Relative number of clients in the group; shares need not sum to 1."""
    args: dict[str, Any] = {}
    """Keyword arguments of the model."""
    adapter: Adapter | None = None
    """Adapters on the frozen initial network; absent: all weights are trained."""

    @property
    def architecture(self) -> tuple[str, dict[str, Any], Adapter | None]:
        """Equal for groups whose models have weights of equal shapes."""
        return self.model, self.args, self.adapter


class EarlyStopping(Section):
    """Early stopping of local training by the loss on held-out samples.

    Training returns to the weights of the lowest loss. Held-out samples are drawn once per client and task.
    They are never trained on, but count as training samples. Clients with fewer than 2 of them, and models
    other than networks, train all epochs.
    """

    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Held-out share of the client's training samples, stratified by class."""
    patience: PositiveInt = 3
    """Epochs without a lower loss after which the round's training stops."""


class Training(Section):
    """Local training; distillation uses the same optimiser settings."""

    recipe: Literal["alternating", "joint"] = "alternating"
    """Combination of training on private samples and on targets. `alternating`: one after the other, unless
    the strategy's paper trains on both at once. `joint`: both together, with defaults 1 of `fusion.ce_weight`
    and 0.3 of `fusion.kd_weight`."""
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    """The optimiser."""
    optimizer_state: Literal["fresh", "kept"] = "fresh"
    """State of the optimiser (momentum and moments). `fresh`: reset each round; `kept`: kept over a client's
    rounds and tasks. Distillation always starts fresh."""
    lr: Annotated[float, Field(gt=0.0)] = 1e-3
    """Learning rate."""
    momentum: Fraction = 0.0
    """Momentum of `sgd` and `rmsprop`."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """L2 penalty (`sgd`, `adam`, `rmsprop`) or decoupled decay (`adamw`)."""
    schedule: Literal["constant", "cosine", "step", "exponential"] = "constant"
    """Learning-rate schedule: `cosine` decays to zero; `step` drops every few rounds, `exponential` every
    round."""
    lr_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Factor of every drop; absent: 0.1 for `step`, 0.99 for `exponential`."""
    lr_step_rounds: PositiveInt | None = None
    """Rounds between two drops; required by `step`."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    """Clip the gradient to this norm; absent: no clipping."""
    batch_size: PositiveInt = 32
    """Samples per batch."""
    accumulate: PositiveInt = 1
    """Batches per optimiser step, with averaged gradients, to save memory; in distillation too."""
    local_epochs: PositiveInt = 1
    """Passes over the client's training samples per round."""
    early_stopping: EarlyStopping | None = None
    """Early stopping of local training; absent: none."""
    held_out: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of each client's training samples, stratified by class, that is held out for its choices
    (`fusion.logit_adjustment = "auto"`, `chosen_beta`). Absent: 0.2 if there is a choice, else 0. With
    `early_stopping` its held-out samples serve both. A client with fewer than 2 holds out none."""
    autocast: bool = False
    """bfloat16 autocast on a GPU; ignored on a CPU, where it is slower."""
    executor: Literal["loop", "vectorised", "auto"] = "loop"
    """Execution of a process's clients. `loop`: one after the other; `vectorised`: clients of one model
    together, faster on a GPU, with different rounding. `auto`: measure both once and write the faster into
    the run folder's scenario."""
    vmap_size: Annotated[int, Field(ge=1, le=4096)] = 16
    """Most clients that `vectorised` trains together; it holds a second copy of their weights."""
    fast: bool = True
    """Use recorded steps, factored gradients and fedkd's kernels. `false` runs plain code, with the same
    results up to the order of sums."""


class Clock(Section):
    """Simulated time of jobs and messages, drawn from the seed."""

    work: Literal["drawn", "steady", "steps"] = "drawn"
    """Time of a job, multiplied by the client's factor. `drawn`: `seconds` · |N(0, 1)|, drawn per job;
    `steady`: `seconds`; `steps`: `seconds` per batch, distillation included."""
    seconds: Annotated[float, Field(gt=0.0, le=1e9)] = 1.0
    """Simulated seconds of a client with factor 1."""
    spread: Spread = 1.0
    """σ of a client's log-normal factor, drawn once; 0: all clients are equally fast."""
    bandwidth: Annotated[float, Field(gt=0.0, le=1e9)] | None = None
    """Megabits per second, each way, of a client with factor 1; absent: bytes take no time."""
    bandwidth_spread: Spread = 0.0
    """σ of the log-normal factor of a client's bandwidth, drawn once."""
    latency: Annotated[float, Field(ge=0.0, le=1e9)] = 0.0
    """Simulated seconds of every message, each way, in addition to the time of its bytes."""
    targets: list[Percent] = Field(default=[50, 70, 80, 90], max_length=100)
    """Target accuracies in percent; the summary has the time at which the mean first reached each."""


class Asynchronous(Section):
    """Asynchronous rounds: the server fuses after a number of uploads."""

    buffer: PositiveInt = 10
    """K: number of uploads after which the server fuses. 1 fuses each upload at once; FedBuff's paper uses
    10."""
    concurrency: PositiveInt | None = None
    """Most clients that train at a time; the next are drawn from the seed. Absent: all."""
    staleness: Annotated[float, Field(ge=0.0, le=100.0)] = 0.5
    """a in s(τ) = (1 + τ)^−a, the weight of an upload that began τ versions ago; a strategy's `stale_decay`
    has precedence."""


class Topology(Section):
    """Communication graph; graphs other than a star have no server."""

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
    """Order of clients in `ring`, `k_regular`, `one_peer_exponential`: by number, or drawn once for the
    run."""
    path: str | None = None
    """JSON file of each client's senders (`file`): `{"hears": [[1, 2], [0], [0]]}`, or a cycle of such lists,
    one per round, `{"rounds": [[…], […]]}`; or a run's `topology.json`."""
    mixing: Literal["metropolis", "push_sum"] | None = None
    """Mixing weights of `gossip`. `metropolis`: 1 / (1 + the larger number of links); needs links in both
    directions. `push_sum`: for all graphs. Absent: `metropolis` in every round that allows it."""
    relay: bool = False
    """Clients forward the newest knowledge of others, one link per round. The strategy weights it by age, so
    it needs a `stale_decay`."""
