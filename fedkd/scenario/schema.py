"""The scenario: everything that decides a run, one documented field at a time.

The models below, in `sections` and in `tracking` are the single source of the file format: loading,
``--set``, the error messages and the JSON schema for editors all come from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from fedkd.explain import show_value
from fedkd.scenario.clock import Asynchronous, Clock
from fedkd.scenario.sections import ClientGroup, Data, PositiveInt, Section, Training
from fedkd.scenario.sections import EarlyStopping as EarlyStopping
from fedkd.scenario.sections import Partition as Partition
from fedkd.scenario.sections import Transfer as Transfer
from fedkd.scenario.topology import Topology
from fedkd.scenario.tracking import Tracking
from fedkd.scenario.tracking import Wandb as Wandb

MOST_ROUNDS = 10**9
MOST_TASKS = 10_000
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
    width: PositiveInt | None = None
    """Columns of a client's sketch of a layer's inputs; absent: as many as the layer has inputs. Fewer weigh
    less, and protect less than ε: some energy of what is left looks like that of directions already taken."""


class Filter(Section):
    """Which predictions on transfer samples are heard: each is weighed in [0, 1], and dropped if it weighs
    too little. A sample of which nobody's prediction is left is not taught."""

    by: Literal["confidence", "agreement", "relevance"] = "agreement"
    """`confidence`: 1 − entropy / log C. `agreement`: the share of the others who say the same, of those who
    know the class. `relevance`: how likely the sample is of classes that the receiver lacks; for strategies
    that mix predictions for each client (`knfu`, `kta`, `ktpfl`, `comet`)."""
    threshold: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """The least weight that is kept; 0 keeps all. Absent: 0.5, for `agreement` 0.3."""
    quantile: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """In its place the share that is dropped of what filters before it have left, whatever it weighs."""
    at: Literal["fusion", "upload"] = "fusion"
    """`fusion`: the server drops what it was sent. `upload`: a client does not send what it drops, and a bit
    for each sample instead; by `confidence` alone, for which it needs nobody else."""

    @model_validator(mode="after")
    def _check(self) -> Filter:
        if self.threshold is not None and self.quantile is not None:
            raise ValueError("has a threshold and a quantile; must be one of them")
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
    private_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """γ: weight of the cross entropy on private batches that is added to the distillation loss."""
    upload_top: PositiveInt | None = None
    """Classes of each uploaded prediction that are sent, the likeliest ones; the server spreads the rest
    evenly over the others. A value and a byte a class. Absent: all classes."""
    filters: list[Filter] = []
    """Which predictions are heard, one filter after another, with any strategy whose clients send predictions
    on transfer samples and learn targets of them. Absent: all."""
    relations: Relations | None = None
    """Have clients learn how transfer samples are related, too, for strategies whose guidance is targets and
    networks with features; `{}` for its defaults. Absent: each sample's target alone."""
    rehearse: Annotated[float, Field(ge=0.0)] = 0.0
    """ρ: weight of the distillation loss on a transfer batch of the last guidance that is added in every step
    of local training, so that it does not undo what guidance has taught; for strategies whose guidance is
    targets. Try 0.3 with `private_weight` 1. A step costs two forward and backward passes then."""
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


class Heterogeneity(Section):
    """How clients' data differ beyond their labels. Every draw is per client, once for the run."""

    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """Each client's images are turned by an angle of its own, uniform within ± this many degrees."""
    noise: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    """Each client's samples carry Gaussian noise of its own standard deviation, uniform up to this; in units
    of the normalised data."""
    colour: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Each client's channels are scaled by factors of its own, uniform within 1 ± this."""
    label_noise: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Each client trains on labels of which a share of its own, uniform up to this, is replaced by another
    class. Its test labels stay true."""


class Faults(Section):
    """Clients that are hostile, absent or slow, and what is done about those that fail."""

    poisoned: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of clients that are poisoned, drawn once; their own accuracy is left out of the means."""
    poison: Literal["random", "flipped", "imitation"] = "random"
    """What a poisoned client uploads: `random` predictions; those of a model trained on `flipped` labels;
    `imitation`: random predictions with the class distribution of a victim's, which fools class-distribution
    weights."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability that a client that was sampled for a round does not take part in it; one always does."""
    stragglers: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Probability that a client is slow in a round and does only `straggler_work` of its local training."""
    straggler_work: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share of its training samples a slow client gets through, once."""
    timeout: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds for a client to answer one message, making the client included; who takes longer has failed.
    Absent: no end. The Ray engine alone can interrupt a client."""
    on_client_error: Literal["fail", "skip", "retry"] = "fail"
    """What is done when a client raises an error, dies with its process, or does not answer in time: `fail`
    ends the run; `skip` counts the client as absent, in the state it had before; `retry` asks it once more
    from that state. A loss that is no number ends the run whatever is said here."""
    retries: PositiveInt = 1
    """How often `retry` asks once more before the run ends."""
    min_replies: PositiveInt = 1
    """Replies that a message to several clients needs after `skip` has left some out; with fewer the run
    ends."""


class Population(Section):
    """Clients that are not there from the first round to the last, drawn once from the seed.

    What a client is away for it does not learn: the course of a late client begins late.
    """

    late: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of clients that join late."""
    late_by: Annotated[int, Field(ge=1, le=10**6)] = 1
    """A late client joins after one to so many rounds, drawn evenly."""
    breaks: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of clients that are away once and come back: between two tasks of a stream, else at any time."""
    break_rounds: Annotated[int, Field(ge=1, le=10**6)] = 1
    """Rounds of a break."""
    leaving: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of clients that leave for good before their course is over, after a round drawn evenly."""


class Transferability(Section):
    """The transferability map: whom each client would learn from if it learned from one other alone.

    In each of these rounds, when clients have trained and before they are guided, a copy of every client
    distils the predictions of every other one, and of itself, on the transfer set; it is measured and thrown
    away. Beside that stands what several predictors would have guessed. Nothing else of the run changes.
    """

    rounds: Annotated[list[PositiveInt], Field(min_length=1)] = [1]
    """Rounds in which it is measured, ascending; those after the last one are never reached. A round costs N²
    distillations of N clients."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Passes of a copy over the transfer set, with the learning rate and the batches of `fusion`."""


class Measure(Section):
    """What is measured besides accuracies, for itself: it changes nothing that is learned or sent."""

    transferability: Transferability | None = None
    """The map of who would gain how much from whom; absent: it is not measured."""


ClassList = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
"""The classes of one task, by their labels."""


class TaskStream(Section):
    """The stream of tasks that every client learns."""

    kind: Literal["split", "permuted", "rotated", "overlapping", "datasets"] = "split"
    """What a task is: `split` (the classes in groups), `permuted` (one fixed permutation of the pixels),
    `rotated` (one angle), `overlapping` (windows of classes that overlap), `datasets` (one data set)."""
    count: Annotated[int, Field(ge=1, le=MOST_TASKS)] | None = None
    """Number of tasks; absent: 5, for `datasets` and lists of `classes` one each. `overlapping` windows have
    to say."""
    classes: Annotated[list[ClassList], Field(min_length=1)] | None = None
    """The classes of every task, by their labels (`split`, `overlapping`), in the order they are learned: of
    any number each. Classes may be left out; one that is in several tasks makes them `overlapping`. Absent:
    the keys below say."""
    first_classes: PositiveInt | None = None
    """Classes of the first task (`split`), such as half of them; the other tasks share out the rest, or have
    `classes_per_task` each. Absent: as many as the others."""
    classes_per_task: PositiveInt | None = None
    """Classes of a task (`split`: absent, the classes are shared out evenly; `overlapping`: the width of a
    window, 4 if absent)."""
    stride: PositiveInt | None = None
    """Classes between the starts of two windows (`overlapping`); absent: half a window."""
    class_order: Literal["sorted", "shuffled"] = "sorted"
    """Order in which `split` and `overlapping` take the classes; `shuffled` draws it from `class_seed`."""
    class_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of a `shuffled` class order, so that runs of several seeds learn the same tasks, or runs of one
    seed different ones; absent: the scenario's seed."""
    blur: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of every task's training samples that are of the classes of other tasks (`split`, with the head
    `class`), as in "blurry" streams: each task gives as many of its own to all others alike. Tests stay those
    of the task's own classes."""
    boundaries: bool = True
    """Whether learners may be told when a task begins and ends. Without, only those can be used that need not
    know (`naive`, `der`, `der++`, `supsup` that finds them), with outputs that tasks share. Strategies
    still fuse by task."""
    permute_first: bool = False
    """Whether the first of `permuted` tasks is permuted too; otherwise its pixels are where they are."""
    max_angle: Annotated[float, Field(gt=0.0, le=360.0)] = 180.0
    """Angles of `rotated` tasks are spread evenly from 0 up to this many degrees, this one left out."""
    datasets: list[str] = []
    """Names of the data sets (`datasets`), in the order they are learned; empty: `data.dataset` alone."""
    shape: list[PositiveInt] | None = None
    """Channels, height and width that the samples of all `datasets` are brought to; absent: the first's."""
    order: Literal["same", "shuffled", "overlapping", "file"] = "same"
    """Order in which each client meets the tasks: the `same` for all; `shuffled`, each client its own;
    `overlapping`, each client its own `tasks_per_client` of them, so that it shares some with others; that of
    the `schedule` (`file`)."""
    tasks_per_client: PositiveInt | None = None
    """Tasks that a client learns (`overlapping` order); absent: about half of them."""
    visits: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often each client goes through its tasks: above 1 they return, in the same order."""
    clock: Literal["lockstep", "groups", "uniform", "poisson", "file"] = "lockstep"
    """When clients move on to the next task: all at once, after `rounds_per_task` (`lockstep`); each of
    `groups` of clients at a pace of its own, or each client (`uniform`); after a number of rounds drawn for
    every client and task, `rounds_per_task` in the mean (`poisson`); as the `schedule` says (`file`)."""
    groups: PositiveInt | None = None
    """Number of groups that clients are dealt to evenly (`groups`); absent: 2."""
    pace: list[Annotated[int, Field(ge=1, le=10**6)]] | None = None
    """Rounds a task of the fastest and of the slowest: those of the groups are spread evenly between them,
    those of single clients drawn evenly (`uniform`). Absent: `rounds_per_task` and three times as many."""
    max_lag: PositiveInt | None = None
    """How many tasks the fastest client may be ahead of the slowest: who would be further ahead stays with
    its task for longer. Absent: any number."""
    schedule: str | None = None
    """JSON file with every client's tasks and rounds, as a run leaves it in `schedule.json`: for an order and
    a clock of `file`."""


class Continual(Section):
    """Continual learning: how every client learns a stream of tasks without forgetting.

    Keys that are not listed here are the learner's own (`strength`, `density`, …), checked against it.
    """

    model_config = ConfigDict(extra="allow")

    learner: str = "naive"
    """A learner of fedkd by name, or your own as `"pkg.mod:Class"`."""
    tasks: TaskStream = TaskStream()
    head: Literal["task", "domain", "class"] | None = None
    """What the outputs of the model are: each task has its own (`task`), all tasks share theirs (`domain`),
    or every class has one and competes with all others (`class`). Absent: `domain` for `permuted` and
    `rotated`, else `task`."""
    rounds_per_task: PositiveInt = 1
    """Federated rounds spent on each task; `rounds` is the number of tasks times this."""
    online: bool = False
    """Whether each sample is trained on once: the rounds of a task share out its samples, and one epoch of a
    round goes through its part. What a learner remembers may be trained on again."""
    evaluate_without_task: bool = True
    """Whether models are also tested without being told the task. For learners that infer it this costs a
    pass for every task met: with tens of tasks, more than learning them."""
    evaluate_epochs: bool = False
    """Whether a client tests itself on the current task after every local epoch, for learning curves."""


class Engine(Section):
    """Where client work runs. Never changes a result."""

    kind: Literal["ray", "inline"] = "ray"
    """`ray`: actors; `inline`: this process."""
    actors: PositiveInt | None = None
    """Number of actors; absent: as many as fit the cluster."""
    cpus_per_actor: Annotated[float, Field(gt=0.0)] = 1.0
    """CPUs an actor reserves."""
    gpus_per_actor: Annotated[float, Field(ge=0.0)] | None = None
    """GPUs an actor reserves; fractions share a GPU. Absent: the cluster's GPUs, if it has any, are shared
    out among the actors; 0: none."""
    threads_per_client: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads of one client's arithmetic, whatever its actor's share of CPUs (results depend on it)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPU where the actor holds a share of one, else the CPU."""
    address: str | None = None
    """Address of an existing Ray cluster, or `"auto"`; absent: a local one."""
    live_clients: PositiveInt | None = None
    """Clients that a process keeps in memory at a time; of the others, those that have taken part lie on
    disk, as they are, until they are needed. Absent: as many as a quarter of its share of the memory has room
    for, of the GPU's where clients are on one."""
    start_timeout: Annotated[float, Field(gt=0.0)] = 120.0
    """Seconds within which the first actor has to be up, and each further one after the last, else the run
    fails: on a cluster where others work, how long to wait for room."""
    restarts: Annotated[int, Field(ge=0, le=1000)] = 3
    """How often a run begins again from one checkpoint after actors, or the nodes they were on, were lost."""


class Scenario(Section):
    """What to simulate."""

    name: str = Field("scenario", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; letters, digits, `.`, `_` and `-`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random draw derives from it."""
    rounds: Annotated[int, Field(ge=1, le=MOST_ROUNDS)] = 10
    """Federated rounds; of a stream of tasks: absent, as many as its tasks take."""
    clients_per_round: PositiveInt | None = None
    """Clients sampled for training each round; absent: all of them."""
    evaluate_every: PositiveInt = 1
    """Evaluate after every so many rounds, and always after the last. Never changes what is learned."""
    evaluate_clients: PositiveInt | None = None
    """Clients that are evaluated, drawn once; absent: all of them. Never changes what is learned. For many
    clients, whose evaluation takes longer than their training."""
    finish: Literal["guided", "trained"] = "guided"
    """How the run ends: with the guidance of the last round (`guided`), or with one more training of every
    client that is evaluated on its own samples after it (`trained`), recorded as a further round. Many papers
    report the latter."""
    checkpoint_every: PositiveInt = 1
    """Save the whole state after every so many rounds, and always after the last."""
    plugin_path: list[str] = []
    """Folders, relative to the scenario file, whose Python files may be named by `"module:Name"` and where
    relative paths are looked for; the scenario file's own folder is added where it holds one of them."""
    plugins: list[str] = []
    """Modules to import first, installed or beside the scenario file: what they register (`fedkd.register`)
    can then be named like a built-in part."""
    data: Data = Data()
    clients: Annotated[list[ClientGroup], Field(min_length=1)] = [ClientGroup()]
    """The mix of client models."""
    training: Training = Training()
    fusion: Fusion = Fusion()
    heterogeneity: Heterogeneity = Heterogeneity()
    faults: Faults = Faults()
    population: Population = Population()
    clock: Clock | None = None
    """Simulated time; `{}` for its defaults. Absent: there is none, unless rounds are asynchronous."""
    asynchronous: Asynchronous | None = None
    """Have the server fuse after so many uploads, whoever they are of; `{}` for its defaults. Absent: a round
    waits for all that take part in it."""
    topology: Topology = Topology()
    continual: Continual | None = None
    measure: Measure | None = None
    """What is measured besides accuracies; absent: nothing."""
    engine: Engine = Engine()
    tracking: Tracking = Tracking()

    @property
    def last_round(self) -> int:
        """The last round that anything is recorded of: one more training may come after the last fusion."""
        return self.rounds + (self.finish == "trained")
