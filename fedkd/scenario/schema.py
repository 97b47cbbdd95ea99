"""The scenario: everything that decides a run, one documented field at a time.

Loading, ``--set``, error messages and the JSON schema all come from these models and those of `sections` and
`tracking`.
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
    """How clients' data differ beyond their labels. Every draw is per client, once for the run."""

    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    """Each client's images are turned by an angle of its own, uniform within ± this many degrees."""
    noise: Annotated[float, Field(ge=0.0, le=1e6)] = 0.0
    """Standard deviation of each client's Gaussian noise, uniform up to this, in units of the normalised
    data."""
    colour: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Each client's channels are scaled by factors of its own, uniform within 1 ± this."""
    label_noise: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of each client's training labels that another class replaces, uniform up to this; tests stay
    true."""


class Faults(Section):
    """Clients that are hostile, absent or slow, and what is done about those that fail."""

    poisoned: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of clients that are poisoned, drawn once; their own accuracy is left out of the means."""
    poison: Literal["random", "flipped", "imitation", "constant"] = "random"
    """What a poisoned client uploads: `random` predictions; those of a model trained on `flipped` labels;
    `imitation`: random predictions with a victim's class distribution, against class-distribution weights;
    `constant`: class 0 of every sample, in agreement with all poisoned clients."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability that a client that was sampled for a round does not take part in it; one always does."""
    stragglers: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Probability that a client is slow in a round and does only `straggler_work` of its local training."""
    straggler_work: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share of its training samples a slow client gets through, once."""
    timeout: Annotated[float, Field(gt=0.0)] | None = None
    """Seconds for a client to answer a message, else it has failed; absent: no limit. Only with the Ray
    engine."""
    on_client_error: Literal["fail", "skip", "retry"] = "fail"
    """What follows when a client raises an error, dies, or is late: `fail` ends the run; `skip` counts it
    as absent, in its state before; `retry` asks it again from that state. A loss that is no number falls
    under `on_bad_upload`."""
    on_bad_upload: Literal["fail", "drop"] = "fail"
    """What follows when the server refuses a reply, as it names another client or its numbers, shapes or
    types are wrong: `fail` ends the run; `drop` leaves it out and counts it. With `drop`, a client whose
    loss or upload is no number goes back to its state before."""
    retries: PositiveInt = 1
    """How often `retry` asks once more before the run ends."""
    min_replies: PositiveInt = 1
    """Replies that a message to several clients needs after `skip` or `drop`; with fewer the run ends."""

    @property
    def goes_on(self) -> bool:
        """Whether a run goes on after some client has failed, which then is what it was before."""
        return self.on_client_error != "fail" or self.on_bad_upload == "drop"


class Population(Section):
    """Clients that are absent for a time, drawn once from the seed. The course of a late client begins
    late.
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
    """The transferability map: the gain of each client if it learned from one other alone.

    In the given rounds, after local training, a copy of every client distils the predictions of every client
    on the transfer set. It is measured beside the guesses of several predictors, and thrown away.
    """

    rounds: Annotated[list[PositiveInt], Field(min_length=1)] = [1]
    """Rounds of the map, ascending, as far as the run goes; a round costs N² distillations of N clients."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Passes of a copy over the transfer set, with the learning rate and the batches of `fusion`."""


class Measure(Section):
    """What is measured besides accuracies, for itself: it changes nothing that is learned or sent."""

    transferability: Transferability | None = None
    """The map of who would gain how much from whom; absent: it is not measured."""


class Engine(Section):
    """Where client work runs. Results depend on `threads_per_client` and `device`, and on no other key."""

    kind: Literal["ray", "inline"] = "ray"
    """`ray`: actors; `inline`: this process."""
    actors: PositiveInt | None = None
    """Number of actors; absent: as many as fit the cluster."""
    cpus_per_actor: Annotated[float, Field(gt=0.0)] = 1.0
    """CPUs an actor reserves."""
    gpus_per_actor: Annotated[float, Field(ge=0.0)] | None = None
    """GPUs an actor reserves; fractions share a GPU. Absent: actors share the cluster's GPUs; 0: none."""
    threads_per_client: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads of one client's arithmetic, whatever its CPUs. Results depend on it: the last bits of sums
    do."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the GPU where the actor holds a share of one, else the CPU. Results depend on it, by last
    bits."""
    address: str | None = None
    """Address of an existing Ray cluster, or `"auto"`; absent: a local one."""
    live_clients: PositiveInt | None = None
    """Clients that a process keeps in memory; others that have taken part lie on disk until needed.
    Absent: as many as fit a quarter of its share of the memory, the GPU's where clients are on one."""
    start_timeout: Annotated[float, Field(gt=0.0)] = 120.0
    """Seconds within which the first actor has to be up, and each further one after the last, else the run
    fails."""
    restarts: Annotated[int, Field(ge=0, le=1000)] = 3
    """How often a run begins again from one checkpoint after actors, or the nodes they were on, were lost."""


class Scenario(Section):
    """What to simulate."""

    name: str = Field("scenario", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; letters, digits, `.`, `_` and `-`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Every random draw derives from it."""
    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 10
    """Federated rounds; of a stream of tasks: absent, as many as its tasks take."""
    clients_per_round: PositiveInt | None = None
    """Clients sampled for training each round; absent: all of them."""
    evaluate_every: PositiveInt = 1
    """Evaluate after every so many rounds, and always after the last. Never changes what is learned."""
    evaluate_clients: PositiveInt | None = None
    """Clients that are evaluated, drawn once; absent: all. Never changes what is learned; saves time with
    many."""
    end_with: Literal["fusion", "training"] = "fusion"
    """Last phase of the run: the last fusion, or one more local training of every evaluated client
    (`training`), recorded as a further round, as in many papers."""
    checkpoint_every: PositiveInt = 1
    """Save the whole state after every so many rounds, and always after the last."""
    plugin_path: list[str] = []
    """Folders, relative to the scenario file, of Python files named by `"module:Name"` and of relative
    paths; the scenario file's own folder is added where it holds one of them."""
    plugins: list[str] = []
    """Modules to import first, installed or beside the scenario file, which register parts
    (`fedkd.register`)."""
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
    """Fuse after a number of uploads, from any clients; `{}` for its defaults. Absent: rounds wait for
    all."""
    topology: Topology = Topology()
    continual: Continual | None = None
    measure: Measure | None = None
    """What is measured besides accuracies; absent: nothing."""
    engine: Engine = Engine()
    tracking: Tracking = Tracking()

    @property
    def last_round(self) -> int:
        """The last round that anything is recorded of: one more training may come after the last fusion."""
        return self.rounds + (self.end_with == "training")
