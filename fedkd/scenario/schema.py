"""The scenario: a documented field for each key of a run.

Loading, ``--set``, errors and the JSON schema use these models and those of the neighbouring modules.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fedkd.plugins import show_value
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

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Names of runs, benches and searches, which name folders."""

MAX_ROUNDS = 10**9


class Heterogeneity(Section):
    """Feature and label noise of clients, drawn once for each client."""

    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """Largest rotation of images in degrees; each client's angle is uniform within ± this."""
    noise: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    """Largest standard deviation of Gaussian noise, in normalised units; each client's is uniform from 0."""
    colour: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Largest change of channel factors; each client's factors are uniform within 1 ± this."""
    label_noise: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Largest share of wrong training labels; each client's is uniform from 0. Test labels stay correct."""


class Faults(Section):
    """Byzantine, absent and slow clients, and the handling of failed clients."""

    poisoned: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of poisoned clients, drawn once; mean accuracies exclude them."""
    poison: Literal["random", "flipped", "imitation", "constant"] = "random"
    """Upload of a poisoned client. `random`: random predictions; `flipped`: predictions of a model trained on
    flipped labels; `imitation`: random predictions with a victim's class distribution, to attack weights by
    class distribution; `constant`: class 0 for every sample, in collusion."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability that a sampled client drops out of a round; at least one takes part."""
    stragglers: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Probability that a client is slow in a round; it then does `straggler_work` of local training."""
    straggler_work: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share of its training samples that a slow client trains on, once."""
    timeout: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds until a client without an answer has failed (Ray engine only); absent: no limit."""
    on_client_error: Literal["fail", "skip", "retry"] = "fail"
    """Handling of a client that raises an error, dies or times out. `fail` ends the run; `skip` restores the
    client's state and treats it as absent; `retry` repeats the message from that state. NaN losses fall under
    `on_bad_upload`."""
    on_bad_upload: Literal["fail", "drop"] = "fail"
    """Handling of a reply with a wrong client, shape or type, or with NaN. `fail` ends the run; `drop`
    discards and counts the reply. With `drop`, a client with a NaN loss or upload returns to its previous
    state."""
    retries: PositiveInt = 1
    """Most repetitions of a message by `retry`; then the run ends."""
    min_replies: PositiveInt = 1
    """Least replies to a message to several clients after `skip` or `drop`; with fewer the run ends."""

    @property
    def goes_on(self) -> bool:
        """True if a run continues after a client failed."""
        return self.on_client_error != "fail" or self.on_bad_upload == "drop"


class Population(Section):
    """Late, pausing and leaving clients, drawn once from the seed."""

    late: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of clients that join late; their tasks begin late."""
    late_by: Annotated[int, Field(ge=1, le=10**6)] = 1
    """Largest delay of a late client in rounds, drawn uniformly from 1."""
    breaks: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of clients with one break, in a stream between two tasks."""
    break_rounds: Annotated[int, Field(ge=1, le=10**6)] = 1
    """Length of a break in rounds."""
    leaving: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of clients that leave for good after a round drawn uniformly."""


class Transferability(Section):
    """The transferability map: the gain of each client from each single other client.

    After local training in the given rounds, copies of every client distil each client's predictions on the
    transfer set. The gains are recorded with the scores of several predictors.
    """

    rounds: Annotated[list[PositiveInt], Field(min_length=1)] = [1]
    """Rounds of the map, ascending; rounds after the run's last are ignored. One map of N clients costs N²
    distillations."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Passes of a copy over the transfer set, with learning rate and batch size of `fusion`."""


class Measure(Section):
    """Further measurements, without effect on training or messages."""

    transferability: Transferability | None = None
    """Map of every client's gain from each other client; absent: none."""


class Engine(Section):
    """Engine that runs the clients. Only `threads_per_client` and `device` affect results."""

    kind: Literal["ray", "inline"] = "ray"
    """`ray`: actors; `inline`: this process."""
    actors: PositiveInt | None = None
    """Number of actors; absent: as many as fit the cluster."""
    cpus_per_actor: Annotated[float, Field(gt=0.0)] = 1.0
    """CPUs that an actor reserves."""
    gpus_per_actor: Annotated[float, Field(ge=0.0)] | None = None
    """GPUs that an actor reserves; fractions share a GPU; 0: none. Absent: actors share all GPUs."""
    threads_per_client: Annotated[int, Field(ge=1, le=1024)] = 1
    """Compute threads of one client. They affect the last bits of results."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPU if the actor reserves a share of one, else the CPU. The device affects the last bits of
    results."""
    address: str | None = None
    """Address of an existing Ray cluster, or `"auto"`; absent: a local one."""
    live_clients: PositiveInt | None = None
    """Clients that a process keeps in memory; the others are stored on disk. Absent: as many as fit a quarter
    of its share of the memory, or of the GPU memory."""
    start_timeout: Annotated[float, Field(gt=0.0)] = 120.0
    """Seconds to wait for the first actor, and for each further actor after the previous one."""
    restarts: Annotated[int, Field(ge=0, le=1000)] = 3
    """Most restarts from one checkpoint after lost actors or nodes."""


def _samples_or_all(value: Any) -> Any:
    """Refuse other values in one line; a union would report two."""
    if value in ("auto", "full") or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise ValueError(f'must be "auto", "full" or a number of samples, got {show_value(value)}')


class Scenario(Section):
    """The scenario of a run."""

    name: str = Field("scenario", pattern=NAME_PATTERN)
    """Name of the run: letters, digits, `.`, `_` and `-`. Absent: the name of the file."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of all random draws."""
    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 10
    """Number of federated rounds; in a stream of tasks it follows from the tasks."""
    clients_per_round: PositiveInt | None = None
    """Clients sampled for training each round; absent: all of them."""
    evaluate: Annotated[Literal["auto", "full"] | PositiveInt, BeforeValidator(_samples_or_all)] = "auto"
    """Number of common test samples in rounds before the last, a stratified sample drawn once. `auto`: so
    many that evaluations take a fifth of compute, at least 20 per class, and all if there are at most 500.
    `full`: all, as always in the last round, in streams and in asynchronous rounds."""
    evaluate_every: PositiveInt = 1
    """Rounds between evaluations; the last round is always evaluated. Training is unaffected."""
    evaluate_clients: PositiveInt | None = None
    """Number of evaluated clients, drawn once; fewer save time. Training is unaffected. Absent: all."""
    metrics: Annotated[list[str], Field(min_length=1)] = ["accuracy"]
    """Metrics of classification, measured like accuracy, which is always recorded: `macro_f1`,
    `balanced_accuracy`, `auroc`, `ece`, `nll`, `brier`, or a plug-in function, `"module:function"`. Only
    accuracy in a stream of tasks. Of regression: `rmse` (absent: it alone), `mae`, `r2`, `nll`, `coverage`,
    or a plug-in; tables show the first one."""
    end_with: Literal["fusion", "training"] = "fusion"
    """Last phase of the run. `fusion`: the last fusion. `training`: one more local training of every
    evaluated client, recorded as a further round, as in many papers."""
    checkpoint_every: PositiveInt = 1
    """Rounds between checkpoints; the last round is always saved."""
    plugin_path: list[str] = []
    """Folders of plug-in files (`"module:Name"`) and relative paths, relative to the scenario file. Its own
    folder is added if it holds one of the files."""
    plugins: list[str] = []
    """Modules to import first, which call `fedkd.register`; installed, or beside the scenario file."""
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
    """Fuse after a number of uploads from any clients; `{}` for its defaults. Absent: wait for all."""
    topology: Topology = Topology()
    continual: Continual | None = None
    measure: Measure | None = None
    """Further measurements; absent: none."""
    engine: Engine = Engine()
    tracking: Tracking = Tracking()

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names under which metrics besides accuracy are recorded: of `"module:function"`, `function`."""
        return tuple(recorded_name(name) for name in self.metrics if name != "accuracy")

    @property
    def main_metric(self) -> str:
        """Name of the metric that tables show first: accuracy, or the first one in regression."""
        return recorded_name(self.metrics[0]) if self.data.is_regression else "accuracy"

    @property
    def last_round(self) -> int:
        """Last recorded round, counting a local training after the last fusion."""
        return self.rounds + (self.end_with == "training")


def recorded_name(metric: str) -> str:
    """Return the name under which a metric is recorded."""
    return metric.rpartition(":")[2].rpartition(".")[2]
