"""The scenario: a documented field for each key of a run.

Loading, ``--set``, errors and the JSON schema use these models and those of `sections` and `tracking`.
"""

from typing import Annotated, Literal

from pydantic import Field

from fedkd.scenario.continual import MAX_TASKS, Continual, TaskStream
from fedkd.scenario.fusion import FLOWER_PREFIX, CacheSettings, Filter, Fusion, Orthogonal, Relations
from fedkd.scenario.sections import (
    Asynchronous,
    ClientGroup,
    Clock,
    Data,
    EarlyStopping,
    Partition,
    PositiveInt,
    Section,
    Topology,
    Training,
    Transfer,
)
from fedkd.scenario.tracking import Tracking, Wandb

MAX_ROUNDS = 10**9


class Heterogeneity(Section):
    """Differences of clients' data beyond labels, drawn once for each client."""

    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """Each client's images are turned by its own angle, uniform within ± this many degrees."""
    noise: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    """Upper bound of each client's noise, Gaussian, its standard deviation uniform, in normalised units."""
    colour: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Each client's channels are scaled by its own factors, uniform within 1 ± this."""
    label_noise: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Upper bound of the share of a client's training labels that are replaced; test labels stay true."""


class Faults(Section):
    """Byzantine, absent and slow clients, and the handling of failed ones."""

    poisoned: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of poisoned clients, drawn once; the means leave out their accuracy."""
    poison: Literal["random", "flipped", "imitation", "constant"] = "random"
    """Upload of a poisoned client. `random`: random predictions; `flipped`: those of a model trained on
    flipped labels; `imitation`: random predictions with a victim's class distribution, against
    class-distribution weights; `constant`: class 0 for every sample, agreed by all poisoned clients."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability that a sampled client does not take part in a round; one always does."""
    stragglers: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Probability that a client is slow in a round and does only `straggler_work` of local training."""
    straggler_work: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share of its training samples that a slow client sees, once."""
    timeout: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds for a client's answer, after which it has failed (Ray engine only); absent: no limit."""
    on_client_error: Literal["fail", "skip", "retry"] = "fail"
    """Handling of a client that raises an error, dies or is late. `fail` ends the run; `skip` counts the
    client as absent and restores its state; `retry` repeats the message from that state. A loss that is no
    number falls under `on_bad_upload`."""
    on_bad_upload: Literal["fail", "drop"] = "fail"
    """Handling of a reply with wrong client, numbers, shapes or types. `fail` ends the run; `drop` leaves it
    out and counts it. With `drop`, a client whose loss or upload is no number returns to its state before."""
    retries: PositiveInt = 1
    """How often `retry` repeats a message before the run ends."""
    min_replies: PositiveInt = 1
    """Replies needed by a message to several clients after `skip` or `drop`; with fewer the run ends."""

    @property
    def goes_on(self) -> bool:
        """True if a run goes on after a client failed."""
        return self.on_client_error != "fail" or self.on_bad_upload == "drop"


class Population(Section):
    """Clients that are absent for a time, drawn once from the seed."""

    late: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of clients that join late; their tasks begin late."""
    late_by: Annotated[int, Field(ge=1, le=10**6)] = 1
    """A late client joins after 1 to this many rounds, drawn evenly."""
    breaks: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of clients that are away once: between two tasks of a stream, else at any time."""
    break_rounds: Annotated[int, Field(ge=1, le=10**6)] = 1
    """Rounds of a break."""
    leaving: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of clients that leave early for good, after a round drawn evenly."""


class Transferability(Section):
    """The transferability map: the gain of each client from each other alone.

    In the given rounds, after local training, a copy of every client distils every client's predictions on
    the transfer set. Its gain is recorded beside the guesses of several predictors.
    """

    rounds: Annotated[list[PositiveInt], Field(min_length=1)] = [1]
    """Rounds of the map, ascending; later ones are left out. A round costs N² distillations of N clients."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Passes of a copy over the transfer set, with the learning rate and the batches of `fusion`."""


class Measure(Section):
    """Measurements besides accuracies, without effect on learning or messages."""

    transferability: Transferability | None = None
    """Map of every client's gain from each other client; absent: none."""


class Engine(Section):
    """Engine of client work. Only `threads_per_client` and `device` influence results."""

    kind: Literal["ray", "inline"] = "ray"
    """`ray`: actors; `inline`: this process."""
    actors: PositiveInt | None = None
    """Number of actors; absent: as many as fit the cluster."""
    cpus_per_actor: Annotated[float, Field(gt=0.0)] = 1.0
    """CPUs an actor reserves."""
    gpus_per_actor: Annotated[float, Field(ge=0.0)] | None = None
    """GPUs an actor reserves; fractions share a GPU. Absent: actors share the cluster's GPUs; 0: none."""
    threads_per_client: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads of one client's arithmetic, whatever its CPUs. Results depend on it, by last bits."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPU if the actor has a share of one, else the CPU. Results depend on it, by last bits."""
    address: str | None = None
    """Address of an existing Ray cluster, or `"auto"`; absent: a local one."""
    live_clients: PositiveInt | None = None
    """Clients that a process keeps in memory; the others lie on disk. Absent: as many as fit a quarter of
    its share of the memory, or of the GPU's."""
    start_timeout: Annotated[float, Field(gt=0.0)] = 120.0
    """Seconds within which the first actor must start, and each further one after the last."""
    restarts: Annotated[int, Field(ge=0, le=1000)] = 3
    """How often a run restarts from one checkpoint after lost actors or nodes."""


class Scenario(Section):
    """The scenario of a run."""

    name: str = Field("scenario", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; letters, digits, `.`, `_` and `-`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random draw derives from it."""
    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 10
    """Federated rounds; absent in a stream of tasks: as many as its tasks take."""
    clients_per_round: PositiveInt | None = None
    """Clients sampled for training each round; absent: all of them."""
    evaluate: Literal["auto", "full"] | PositiveInt = "auto"
    """Samples of the common test set in rounds before the last, drawn once by class share. `auto`: as many
    as leave evaluations a fifth of compute, at least 20 a class; all of up to 500. `full`: all, as in the
    last round, and with streams and asynchronous rounds."""
    evaluate_every: PositiveInt = 1
    """Evaluate after every so many rounds, and always after the last. Learning stays the same."""
    evaluate_clients: PositiveInt | None = None
    """Evaluated clients, drawn once; fewer save time and leave learning the same. Absent: all."""
    metrics: Annotated[list[str], Field(min_length=1)] = ["accuracy"]
    """Metrics of classification, measured like accuracy, which is always recorded: `macro_f1`,
    `balanced_accuracy`, `auroc`, `ece`, `nll`, `brier`, or a function of your own, `"module:function"`. Not
    in a stream of tasks."""
    end_with: Literal["fusion", "training"] = "fusion"
    """Last phase of the run: the last fusion, or (`training`) one more local training of every evaluated
    client, recorded as a further round, as in many papers."""
    checkpoint_every: PositiveInt = 1
    """Save the whole state after every so many rounds, and always after the last."""
    plugin_path: list[str] = []
    """Folders, relative to the scenario file, of Python files named by `"module:Name"` and of relative
    paths; the scenario file's folder is added if it holds one of them."""
    plugins: list[str] = []
    """Modules to import first, installed or beside the scenario file, with calls of `fedkd.register`."""
    data: Data = Data()
    clients: Annotated[list[ClientGroup], Field(min_length=1)] = [ClientGroup()]
    """The mix of client models."""
    training: Training = Training()
    fusion: Fusion = Fusion()
    heterogeneity: Heterogeneity = Heterogeneity()
    faults: Faults = Faults()
    population: Population = Population()
    clock: Clock | None = None
    """Simulated time; `{}` for its defaults. Absent: none, unless rounds are asynchronous."""
    asynchronous: Asynchronous | None = None
    """Fuse after a number of uploads, from any clients; `{}` for its defaults. Absent: wait for all."""
    topology: Topology = Topology()
    continual: Continual | None = None
    measure: Measure | None = None
    """Measurements besides accuracies; absent: none."""
    engine: Engine = Engine()
    tracking: Tracking = Tracking()

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names under which metrics besides accuracy are recorded: of `"module:function"`, `function`."""
        return tuple(recorded_name(name) for name in self.metrics if name != "accuracy")

    @property
    def last_round(self) -> int:
        """Last recorded round; one more training may follow the last fusion."""
        return self.rounds + (self.end_with == "training")


def recorded_name(metric: str) -> str:
    """Return the name under which a metric is recorded."""
    return metric.rpartition(":")[2].rpartition(".")[2]
