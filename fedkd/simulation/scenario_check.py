"""``fedkd check``: find errors of a scenario without training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd.errors import UserError
from fedkd.scenario import toml_value
from fedkd.simulation.check_data import data_rows, row, stream_rows
from fedkd.simulation.check_traffic import (
    evaluation,
    exchanged,
    fusion_rows,
    kept_rows,
    measure_rows,
    sketches,
    traffic,
)
from fedkd.tracking import count_noun, format_bytes

if TYPE_CHECKING:
    from fedkd.clients import Workload
    from fedkd.data import Data
    from fedkd.plan import Plan, WithoutPlugins
    from fedkd.scenario import Filter

SHOWN_CLIENTS, SHOWN_ROUNDS = 12, 72  # lines and characters of a schedule
SHOWN_PARTS = 6  # parts of an unconnected graph
TRIED_SAMPLES = 50  # made-up ones, for metrics


def check_plan(plan: Plan, progress: Callable[[str], None] | None = None) -> Iterator[str]:
    """Load the data, build every model and try one exchange; yield one line each."""
    from fedkd.data import load_data
    from fedkd.engine import check_local_gpus
    from fedkd.tracking import check_loggers

    scenario = plan.scenario
    check_loggers(scenario)
    check_local_gpus(scenario.engine)
    yield row("scenario", f"{scenario.name}, {count_noun(scenario.rounds, 'round')}, seed {scenario.seed}")
    data = load_data(scenario, progress)
    _try_metrics(plan, data)
    parameters, work, sketches = yield from check_models_and_exchange(plan, data)
    clients, evaluated, unwaiting = scenario.data.clients, scenario.evaluate_clients, scenario.asynchronous
    told = f"{scenario.clients_per_round or clients} of {clients} train in each round"
    if unwaiting is not None:
        told = f"{unwaiting.concurrency or clients} of {clients} train at a time"
        told += f", a round ends after {count_noun(unwaiting.buffer, 'upload')}"
    yield row("clients", told + ("" if evaluated is None else f", {evaluated} are evaluated"))
    yield row("traffic", traffic(plan, data, parameters))
    yield from kept_rows(plan, data, parameters)
    yield from fusion_rows(plan, data)
    if sketches:
        yield row("", sketches)
    yield row("evaluation", evaluation(work))


def _try_metrics(plan: Plan, data: Data) -> None:
    """Call every metric once on made-up predictions; a bad one is a `UserError`."""
    from fedkd.data import first_task
    from fedkd.randomness import numpy_generator

    classes, scale = first_task(data).classes, first_task(data).scale
    generator = numpy_generator(plan.scenario.seed, "check")
    logits = generator.normal(size=(TRIED_SAMPLES, classes))
    labels: np.ndarray = np.arange(TRIED_SAMPLES) % classes
    made_up = f"probabilities [{TRIED_SAMPLES}, {classes}]"
    if scale is not None:
        targets = len(scale.names)
        labels = generator.normal(size=(TRIED_SAMPLES, targets))
        made_up = f"means and variances [{TRIED_SAMPLES}, 2, {targets}]"
    try:
        plan.task.measure(plan.metrics, logits, labels, scale)
    except (RuntimeError, TypeError, ValueError) as error:
        told = f"{error} (tried on made-up {made_up})"
        raise UserError(told, key="metrics") from error


def check_without_plugins(
    unopened: WithoutPlugins, progress: Callable[[str], None] | None = None
) -> Iterator[str]:
    """Check the parts without plug-ins; yield one line each, and last the unchecked parts."""
    from fedkd.data import FederatedData, load_data
    from fedkd.tracking import check_loggers

    scenario = unopened.scenario
    check_loggers(scenario)
    yield row("scenario", f"{scenario.name}, {count_noun(scenario.rounds, 'round')}, seed {scenario.seed}")
    if unopened.knows_data:
        data = load_data(scenario.model_copy(update={"plugins": []}), progress)
        if isinstance(data, FederatedData):
            yield from data_rows(scenario, data)
        else:
            yield from stream_rows(scenario, data)
    left = "models, traffic" if unopened.knows_data else "data, models, traffic"
    yield row("unchecked", f"{left} and the plug-ins: {_pairs(unopened.plug_ins)}")


def check_models_and_exchange(plan: Plan, data: Data) -> Generator[str, None, tuple[int, Workload, str]]:
    """Build every model and yield lines.

    Return the most parameters that a client exchanges, the work of a round, and the text of `sketches`.
    """
    from fedkd.clients import (
        build_checked_models,
        estimate_workload,
        selection_holdout_share,
        with_test_sample,
    )
    from fedkd.data import FederatedData

    scenario = plan.scenario
    if isinstance(data, FederatedData):
        yield from data_rows(scenario, data, selection_holdout_share(plan))
    else:
        yield from stream_rows(scenario, data)
    models = build_checked_models(plan, data)
    yield from _model_rows(plan, models)
    yield row("strategy", _named(scenario.fusion.strategy, scenario.fusion.model_extra))
    if scenario.fusion.filters:
        yield row("", f"filters: {', then '.join(_filtered(wanted) for wanted in scenario.fusion.filters)}")
    if scenario.continual is not None:
        yield row("learner", _named(scenario.continual.learner, scenario.continual.model_extra))
    yield from _schedule_rows(plan)
    yield from _graph_rows(plan)
    yield row("engine", scenario.engine.kind)
    yield from _room_rows(plan, data)
    work = estimate_workload(with_test_sample(plan, data), data, models)
    yield from measure_rows(plan, data, models, work)
    most = max(exchanged(plan, model) for model in models)
    return most, work, sketches(plan, data, models[0])


def _filtered(wanted: Filter) -> str:
    """Describe a filter: ``agreement ≥ 0.3``, ``all but the 20 % of lowest confidence``."""
    from fedkd.fusion import DEFAULT_THRESHOLDS

    sent = " (before upload)" if wanted.at == "upload" else ""
    where = " (equal votes)" if wanted.votes == "equal" else sent
    if wanted.quantile is not None:
        return f"all but the {100 * wanted.quantile:g} % of lowest {wanted.by}{where}"
    least = DEFAULT_THRESHOLDS[wanted.by] if wanted.threshold is None else wanted.threshold
    return f"{wanted.by} ≥ {least:g}{where}"


def _schedule_rows(plan: Plan) -> Iterator[str]:
    if plan.schedule.in_step:
        return
    from fedkd.report import ABSENT_SIGN, schedule_lines

    what = "participation" if plan.learner is None else "task of each client"
    yield row("schedule", f"{what} by round ({ABSENT_SIGN}: absent)")
    for line in schedule_lines(plan.schedule, SHOWN_ROUNDS, SHOWN_CLIENTS):
        yield row("", line)


def _graph_rows(plan: Plan) -> Iterator[str]:
    if plan.graph is None:
        return
    from fedkd.plan import unconnected_clients
    from fedkd.report import LINK_SIGN, SELF_SIGN, graph_lines, graph_title

    rounds = plan.schedule.rounds
    yield row("graph", f"{graph_title(plan.graph, rounds)} ({SELF_SIGN}: itself, {LINK_SIGN}: its senders)")
    for line in graph_lines(plan.graph, rounds, SHOWN_ROUNDS, SHOWN_CLIENTS):
        yield row("", line)
    for name, pieces in unconnected_clients(plan, plan.graph):
        told = f"client {pieces[0][0]} is isolated: no other client has its architecture '{name}'"
        if len(pieces) > 1:
            told = f"clients of '{name}'" if name else "clients"
            shown = [f"{{{', '.join(map(str, part))}}}" for part in pieces[:SHOWN_PARTS]]
            more = f" and {len(pieces) - SHOWN_PARTS} more" * (len(pieces) > SHOWN_PARTS)
            told += f" form parts without a path between them: {' '.join(shown)}{more}"
        yield row("", told)


def _room_rows(plan: Plan, data: Data) -> Iterator[str]:
    from fedkd.engine import estimate_capacity

    live, of_client = estimate_capacity(plan, data)
    if plan.scenario.engine.live_clients is not None or live < plan.scenario.data.clients:
        each = f"at most {live:,} clients in memory per process, about {format_bytes(of_client)} each"
        yield row("", f"{each}; the state of the others is on disk")


def _model_rows(plan: Plan, models: Sequence[Any]) -> Iterator[str]:
    from torch import nn

    from fedkd.models import count_parameters

    clients = Counter(map(id, plan.groups))
    for group, model in zip(plan.scenario.clients, models, strict=True):
        name, what = group.model, type(model).__name__
        if isinstance(model, nn.Module):
            name += f" ({_pairs(group.args)})" if group.args else ""
            what = f"{count_parameters(model):,} parameters"
        yield row("model", f"{name}: {count_noun(clients[id(group)], 'client')}, {what}")


def _named(name: str, hyperparameters: Mapping[str, Any] | None) -> str:
    values = _pairs(hyperparameters or {})
    return f"{name}: {values}" if values else name


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {toml_value(value)}" for name, value in values.items())
