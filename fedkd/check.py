"""``fedkd check``: everything that can be wrong before the first round, found without training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd.catalogue import toml_value
from fedkd.errors import FedkdError, UserError, described
from fedkd.plugins import contained
from fedkd.tracking.wording import size

if TYPE_CHECKING:
    from fedkd.clients.workload import Workload
    from fedkd.data.federated import FederatedData
    from fedkd.data.heterogeneity import Skew
    from fedkd.data.load import Data
    from fedkd.data.stream import FederatedStream
    from fedkd.data.task import Task
    from fedkd.plan.plan import Plan
    from fedkd.plan.unopened import Unopened
    from fedkd.scenario.schema import Continual, Filter, Scenario

HEADS = {
    "task": "each task has outputs of its own",
    "domain": "all tasks share the outputs",
    "class": "every class has an output and competes with all others",
}
"""What a head is, for people."""
SHOWN_TASKS = 5
"""Tasks of a stream that are told of one by one."""
SHOWN_CLASSES = 6
SHOWN_CLIENTS, SHOWN_ROUNDS = 12, 72
"""Lines and characters of a schedule."""


def check(plan: Plan, progress: Callable[[str], None] | None = None) -> Iterator[str]:
    """Load the data and deal it out, build every model and try a round's exchange; yield a line each.

    Args:
        plan: What to check.
        progress: Told what takes long, such as a download.

    Raises:
        UserError: The first thing that would stop a run.
    """
    from fedkd.data.load import load_data
    from fedkd.tracking.loggers.registry import check_loggers

    scenario = plan.scenario
    check_loggers(scenario)
    yield _row("scenario", f"{scenario.name}, {_counted(scenario.rounds, 'round')}, seed {scenario.seed}")
    data = load_data(scenario, progress)
    parameters, work, sketches = yield from check_with(plan, data)
    evaluated = scenario.evaluate_clients
    told = "" if evaluated is None else f", {evaluated} are evaluated"
    yield _row("clients", f"{_at_work(scenario)}{told}")
    yield _row("traffic", _traffic(plan, data, parameters))
    if sketches:
        yield _row("", sketches)
    yield _row("testing", _testing(work))


def check_unopened(unopened: Unopened, progress: Callable[[str], None] | None = None) -> Iterator[str]:
    """Do what `check` does as far as it needs nobody else's code; yield a line each, the last of the rest.

    Raises:
        UserError: The first thing that would stop a run.
    """
    from fedkd.data.federated import FederatedData
    from fedkd.data.load import load_data
    from fedkd.tracking.loggers.registry import check_loggers

    scenario = unopened.scenario
    check_loggers(scenario)
    yield _row("scenario", f"{scenario.name}, {_counted(scenario.rounds, 'round')}, seed {scenario.seed}")
    if unopened.knows_data:
        data = load_data(scenario.model_copy(update={"plugins": []}), progress)
        if isinstance(data, FederatedData):
            yield from _data_rows(scenario, data)
        else:
            yield from _stream_rows(scenario, data)
    left = "models and traffic" if unopened.knows_data else "data, models and traffic"
    yield _row("unchecked", f"{left}, and what {_pairs(unopened.plug_ins)} would do")


def check_with(plan: Plan, data: Data) -> Generator[str, None, tuple[int, Workload, str]]:
    """Build every model, and yield what is to be said of them and of the data, a line each.

    Returns:
        Number of parameters that the largest model exchanges, if it does, what a round has to compute, and
        what is to be said of sketches that are sent at the end of a task; empty: none are.

    Raises:
        UserError: The first thing that would stop a run.
    """
    from fedkd.clients.memory import checked_models
    from fedkd.clients.own_samples import share_held_out
    from fedkd.clients.workload import workload
    from fedkd.data.federated import FederatedData

    scenario = plan.scenario
    if isinstance(data, FederatedData):
        yield from _data_rows(scenario, data, share_held_out(plan))
    else:
        yield from _stream_rows(scenario, data)
    models = checked_models(plan, data)
    for text in _models(plan, models):
        yield _row("model", text)
    yield _row("strategy", _named(scenario.fusion.strategy, scenario.fusion.model_extra))
    if scenario.fusion.filters:
        yield _row("", f"hears {', then '.join(_filtered(wanted) for wanted in scenario.fusion.filters)}")
    if scenario.continual is not None:
        yield _row("learner", _named(scenario.continual.learner, scenario.continual.model_extra))
    yield from _schedule_rows(plan)
    yield from _graph_rows(plan)
    yield _row("engine", scenario.engine.kind)
    yield from _room_rows(plan, data)
    work = workload(plan, data, models)
    yield from _measure_rows(plan, data, models, work)
    exchanged = max(_exchanged(plan, model) for model in models)
    return exchanged, work, _sketches(plan, data, models[0])


def _at_work(scenario: Scenario) -> str:
    clients, unwaiting = scenario.data.clients, scenario.asynchronous
    if unwaiting is None:
        return f"{scenario.clients_per_round or clients} of {clients} train in a round"
    working = unwaiting.concurrency or clients
    uploads = _counted(unwaiting.buffer, "upload")
    return f"{working} of {clients} are at work at a time, a round is over after {uploads}"


def _row(label: str, text: str) -> str:
    return f"{label:<10}{text}"


def _filtered(wanted: Filter) -> str:
    """Return what a filter lets through: ``by agreement ≥ 0.3``, ``all but the 20 % least by confidence``."""
    from fedkd.fusion.filters import THRESHOLDS

    where = ", which alone is sent" if wanted.at == "upload" else ""
    if wanted.quantile is not None:
        return f"all but the {100 * wanted.quantile:g} % least by {wanted.by}{where}"
    least = THRESHOLDS[wanted.by] if wanted.threshold is None else wanted.threshold
    return f"by {wanted.by} ≥ {least:g}{where}"


def _data_rows(scenario: Scenario, data: FederatedData, held_out: float | None = None) -> Iterator[str]:
    shape = "×".join(map(str, data.input_shape))
    testing = f"{len(data.test_y):,} {_common_tests(scenario)}"
    yield _row("data", f"{data.name}: {data.classes} classes, samples of {shape}{_kind(data)}, {testing}")
    yield _row("partition", _partition(scenario))
    yield from _size_rows(scenario, [data], "client", held_out)
    yield _row("", f"label skew: {_skew(data.label_distribution())}")
    if data.skew:
        yield _row("", f"clients differ by {_differences(data.skew)}")
    yield _row("transfer", f"{_counted(len(data.transfer_x), 'sample')} from {scenario.data.transfer.source}")


def _stream_rows(scenario: Scenario, stream: FederatedStream) -> Iterator[str]:
    continual = scenario.continual
    assert continual is not None
    shape = "×".join(map(str, stream.input_shape))
    testing = _spread([len(task.data.test_y) for task in stream])
    yield _row("data", f"{stream.name}: samples of {shape}{_kind(stream)}")
    yield _row("stream", _course(scenario, continual))
    for task in stream[:SHOWN_TASKS]:
        yield _row("", f"task {task.index}: {_task(task)}")
    if len(stream) > SHOWN_TASKS:
        yield _row("", f"… and {len(stream) - SHOWN_TASKS} more")
    yield _row("head", f"{continual.head}: {HEADS[str(continual.head)]}, {stream.outputs} in all")
    yield _row("partition", _partition(scenario))
    tasks = [task.data for task in stream]
    yield from _size_rows(scenario, tasks, "client and task")
    yield _row("", f"samples {_common_tests(scenario)} of a task: {testing}")
    yield _row("", f"label skew in task 0: {_skew(tasks[0].label_distribution()[:, _own_labels(stream[0])])}")
    if tasks[0].skew:
        yield _row("", f"clients differ by {_differences(tasks[0].skew)}")
    size = max(len(task.transfer_x) for task in tasks)
    yield _row("transfer", f"{_counted(size, 'sample')} from {scenario.data.transfer.source}, for each task")


def _common_tests(scenario: Scenario) -> str:
    if scenario.data.validation is None:
        return "in the common test set"
    return "held out by clients in the place of the common test set"


def _course(scenario: Scenario, continual: Continual) -> str:
    """Word what is learned for how long."""
    stream, epochs = continual.tasks, _counted(scenario.training.local_epochs, "epoch")
    tasks = f"{_counted(stream.count or 1, 'task')} ({stream.kind})"
    if stream.order != "same":
        tasks += f" in order '{stream.order}'"
    if stream.blur:
        tasks += f", {100 * stream.blur:g} % of each of other tasks' classes"
    if continual.online:
        tasks += ", each sample once"
    if stream.clock != "lockstep":
        return f"{tasks}, by clock '{stream.clock}', rounds of {epochs}"
    return f"{tasks}, {_counted(continual.rounds_per_task, 'round')} of {epochs} each"


def _schedule_rows(plan: Plan) -> Iterator[str]:
    """Draw who learns which task when, where that is not the same for all."""
    if plan.schedule.in_step:
        return
    from fedkd.report.schedule import AWAY, schedule_lines

    what = "who is there" if plan.learner is None else "the task of each client"
    yield _row("schedule", f"{what}, round by round ({AWAY}: away)")
    for line in schedule_lines(plan.schedule, SHOWN_ROUNDS, SHOWN_CLIENTS):
        yield _row("", line)


def _graph_rows(plan: Plan) -> Iterator[str]:
    """Draw who hears whom, where there is no server, and name those who never hear of each other."""
    if plan.graph is None:
        return
    from fedkd.plan.graph_checks import separate
    from fedkd.report.topology import HEARS, HERSELF, graph_lines, graph_title

    rounds = plan.schedule.rounds
    yield _row("graph", f"{graph_title(plan.graph, rounds)} ({HERSELF}: itself, {HEARS}: whom it hears)")
    for line in graph_lines(plan.graph, rounds, SHOWN_ROUNDS, SHOWN_CLIENTS):
        yield _row("", line)
    for name, pieces in separate(plan, plan.graph):
        whose = f"clients of '{name}'" if name else "clients"
        if len(pieces) == 1:
            yield _row("", f"client {pieces[0][0]} is alone: no other is of its architecture '{name}'")
            continue
        shown = [f"{{{', '.join(map(str, part))}}}" for part in pieces[:SHOWN_CLASSES]]
        more = f" and {len(pieces) - SHOWN_CLASSES} more" * (len(pieces) > SHOWN_CLASSES)
        yield _row("", f"{whose} fall into parts that never hear of each other: {' '.join(shown)}{more}")


def _task(task: Task) -> str:
    """Word a task: its name, and its classes where the name is not made of them."""
    names = [task.data.class_names[label].removesuffix(f" ({task.name})") for label in _own_labels(task)]
    classes = _counted(len(names), "class", "classes")
    if " ".join(names) == task.name:
        return f"{task.name} ({classes})"
    more = ", …" * (len(names) > SHOWN_CLASSES)
    return f"{task.name} ({classes}: {', '.join(names[:SHOWN_CLASSES])}{more})"


def _own_labels(task: Task) -> list[int]:
    """Return the labels that occur in a task; where every class has an output, others may be answered."""
    label = {unit: place for place, unit in enumerate(task.units)}
    return [label[unit] for unit in task.own_units]


def _partition(scenario: Scenario) -> str:
    partition = scenario.data.partition
    drawn = partition.scheme in ("dirichlet", "dirichlet-per-client", "quantity")
    alpha = f", alpha = {partition.alpha:g}" if drawn else ""
    return f"{partition.scheme}{alpha}, {_counted(scenario.data.clients, 'client')}"


def _kind(data: Data) -> str:
    return " integers" if data.input_dtype.kind == "i" else ""


def _size_rows(
    scenario: Scenario, tasks: Sequence[FederatedData], unit: str, held_out: float | None = None
) -> Iterator[str]:
    """Yield how many samples clients train on and are tested on, from the fewest to the most."""
    from fedkd.clients.own_samples import number_kept_apart

    train = [stop - start for data in tasks for start, stop in data.train_bounds]
    test = [stop - start for data in tasks for start, stop in data.test_bounds]
    yield _row("", f"train samples per {unit}: {_spread(train)}")
    if stopping := scenario.training.early_stopping:
        apart = [number_kept_apart(samples, stopping.validation) for samples in train]
        none = f"; {apart.count(0)} of {len(apart)} keep none apart and train all epochs" * (0 in apart)
        yield _row("", f"of these kept apart for early stopping: {_spread(apart)}{none}")
    elif held_out:
        apart = [number_kept_apart(samples, held_out) for samples in train]
        yield _row("", f"of these kept apart to choose by: {_spread(apart)}")
    kind = "local test samples" if scenario.data.validation is None else "samples held out for validation"
    yield _row("", f"{kind} per {unit}: {_spread(test)}" if any(test) else "no local test sets")


def _skew(shares: np.ndarray) -> str:
    """Word how far clients are from seeing all classes equally.

    Args:
        shares: Share of every class among each client's training labels, [N, C].
    """
    seen = np.median((shares > 0).sum(axis=1))
    # The exponential of the entropy: the number of equally frequent classes that would be as varied.
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    effective = np.median(np.exp(-(shares * logs).sum(axis=1)))
    return f"a client sees {seen:g} of {shares.shape[1]} classes, effectively {effective:.1f} (medians)"


def _differences(skews: Sequence[Skew]) -> str:
    """Word what was drawn for the clients, from the least to the most."""
    columns = {
        "rotation {:+.0f}° to {:+.0f}°": [skew.angle for skew in skews],
        "noise {:.2f} to {:.2f}": [skew.noise for skew in skews],
        "colour ×{:.2f} to ×{:.2f}": [factor for skew in skews for factor in skew.colour],
        "wrong training labels {:.0%} to {:.0%}": [skew.label_noise for skew in skews],
    }
    return ", ".join(text.format(min(drawn), max(drawn)) for text, drawn in columns.items() if any(drawn))


def _spread(sizes: Sequence[int]) -> str:
    return f"min {min(sizes):,}, median {np.median(sizes):,.0f}, max {max(sizes):,}"


def _room_rows(plan: Plan, data: Data) -> Iterator[str]:
    """Say how many clients live in a process at a time, where that is not all of them."""
    from fedkd.engine.clients import expected_room

    live, of_client = expected_room(plan, data)
    clients = plan.scenario.data.clients
    if plan.scenario.engine.live_clients is None and live >= clients:
        return
    each = f"up to {live:,} clients in memory in a process, of about {size(of_client)} each"
    yield _row("", f"{each}; what others are lies on disk once they have taken part")


def _measure_rows(plan: Plan, data: Data, models: Sequence[Any], work: Workload) -> Iterator[str]:
    """Say what is measured besides accuracies, and what it takes."""
    from fedkd.clients.workload import trial_work
    from fedkd.data.federated import FederatedData

    scenario = plan.scenario
    wanted = None if scenario.measure is None else scenario.measure.transferability
    if wanted is None or not isinstance(data, FederatedData):
        return
    reached = [round for round in wanted.rounds if round <= scenario.rounds]
    clients = scenario.clients_per_round or scenario.data.clients
    samples = len(data.transfer_x)
    rounds = f"in round{'s' * (len(reached) > 1)} {', '.join(map(str, reached))}"
    copies = _counted(clients**2, "distillation")
    epochs = f", {wanted.epochs} epochs" * (wanted.epochs > 1)
    yield _row("measure", f"who would gain from whom, {rounds}: {copies} of {samples:,} samples{epochs} each")
    times = trial_work(plan, data, models) / max(work.training, 1.0)
    down = 4 * clients**2 * samples * data.classes
    up = clients * samples * (np.dtype(scenario.fusion.upload_dtype).itemsize * data.classes + 4 * clients)
    yield _row(
        "",
        f"about {times:.1f} times what clients train in a round; {size(up)} up, {size(down)} down each time",
    )


def _models(plan: Plan, models: Sequence[Any]) -> Iterator[str]:
    """Yield the line of every group's model."""
    from torch import nn

    from fedkd.models.build import count_parameters

    scenario = plan.scenario
    clients = Counter(map(id, plan.groups))
    for group, model in zip(scenario.clients, models, strict=True):
        if not isinstance(model, nn.Module):
            yield f"{group.model}: {_counted(clients[id(group)], 'client')}, {type(model).__name__}"
            continue
        count = count_parameters(model)
        args = f" ({_pairs(group.args)})" if group.args else ""
        yield f"{group.model}{args}: {_counted(clients[id(group)], 'client')}, {count:,} parameters"


def _exchanged(plan: Plan, model: Any) -> int:
    """Return how many parameters of a model leave its client, of a strategy that exchanges weights."""
    from torch import nn

    if not isinstance(model, nn.Module):
        return 0
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if p.requires_grad and plan.strategy.exchanges(name))


def _named(name: str, hyperparameters: Mapping[str, Any] | None) -> str:
    values = _pairs(hyperparameters or {})
    return f"{name}: {values}" if values else name


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {toml_value(value)}" for name, value in values.items())


def _traffic(plan: Plan, data: Data, parameters: int) -> str:
    """Estimate what the method sends in a round, all clients together; of a stream's first task."""
    scenario, strategy = plan.scenario, plan.strategy
    sampled = scenario.clients_per_round or scenario.data.clients
    if scenario.asynchronous is not None:
        sampled = scenario.asynchronous.buffer
    if strategy.sends == "nothing":
        return "none"
    if plan.graph is not None:
        return _links_traffic(plan, data, parameters)
    if "weights" in strategy.needs:
        from fedkd.fusion.averaging import WeightAveraging

        weights = size(sampled * parameters * np.dtype(scenario.fusion.upload_dtype).itemsize)
        # What is made for a learner leaves some of them out, and sends something else now and then.
        weighed = strategy.brings_model or isinstance(strategy, WeightAveraging)
        least = "about" if weighed or strategy.learner is not None else "at least"
        return f"{least} {weights} up, {size(sampled * parameters * 4)} down in a round ({strategy.sends})"
    up, down = _tried(plan, data)
    if scenario.asynchronous is not None:  # a round of all clients is tried
        up, down = (round(sent * sampled / scenario.data.clients) for sent in (up, down))
    return f"about {size(up)} up, {size(down)} down in a round ({strategy.sends} up, guidance down)"


def _tried(plan: Plan, data: Data) -> tuple[int, int]:
    """Return the bytes up and down of a round that is tried."""
    from fedkd.server.trial import trial_exchange

    try:
        with contained(), np.errstate(all="ignore"):
            return trial_exchange(plan, data)
    except FedkdError:
        raise
    except Exception as error:
        told = f"'{plan.scenario.fusion.strategy}' raised {described(error)} when a round was tried"
        raise UserError(told, key="fusion.strategy") from error


def _links_traffic(plan: Plan, data: Data, parameters: int) -> str:
    """Estimate what clients send each other in a round, all links together; of a stream's first task."""
    assert plan.graph is not None
    scenario, schedule = plan.scenario, plan.schedule
    rounds = range(1, schedule.rounds + 1)
    round = next((round for round in rounds if schedule.participants(round)), 1)
    clients = schedule.participants(round)
    heard = plan.graph.edges(round)[np.ix_(clients, clients)]
    if "weights" in plan.strategy.needs:
        groups = np.array([id(plan.groups[client]) for client in clients])
        heard = heard & (groups[:, None] == groups[None, :])
        each = parameters * np.dtype(scenario.fusion.upload_dtype).itemsize
    else:
        each = _tried(plan, data)[0] // max(len(clients), 1)
    links = int(heard.sum()) - len(clients)
    told = (
        f"about {size(links * each)} over {_counted(links, 'link')} in round {round} ({plan.strategy.sends})"
    )
    return told + ", and what is passed on" * scenario.topology.relay


def _sketches(plan: Plan, data: Data, model: Any) -> str:
    """Word what is sent besides at the end of a task where old ones are protected; empty: nothing is."""
    from fedkd.data.stream import FederatedStream

    settings = plan.scenario.fusion.orthogonal
    if settings is None or not isinstance(data, FederatedStream):
        return ""
    from fedkd.server.orthogonal import Weights, exchanged_bytes

    weights = Weights.of(model, plan.schedule.order(0), [task.units for task in data])
    up, most = exchanged_bytes(settings, weights.fan_in)
    clients = plan.scenario.clients_per_round or plan.scenario.data.clients
    sent = f"about {size(clients * up)} of sketches up"
    return f"at the end of a task {sent}, at most {size(clients * most)} of what is protected down"


def _testing(work: Workload) -> str:
    """Word what share of the arithmetic evaluations take, and what to set if it is most of it."""
    told = f"about {work.share:.0%} of the arithmetic"
    remedies = work.remedies()
    if not remedies:
        return told
    values = [f"{key} = {value}" for key, value in remedies.items()]
    last = f" or {values[-1]}" if len(values) > 1 else ""
    return f"{told}; for half of it: {', '.join(values[:-1] or values)}{last}"


def _counted(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
