"""Costs of a round in ``fedkd check``: bytes of messages, memory and compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedkd.fusion import exchanges_weight
from fedkd.plugins import plugin_call
from fedkd.simulation.check_data import row
from fedkd.tracking import count_noun, format_bytes

if TYPE_CHECKING:
    from fedkd.clients import Workload
    from fedkd.data import Data
    from fedkd.plan import Plan

LARGE_FUSION = 100_000_000


def exchanged(plan: Plan, model: Any) -> int:
    """Return the number of a model's parameters that a weight-averaging strategy exchanges."""
    from torch import nn

    if not isinstance(model, nn.Module):
        return 0
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if p.requires_grad and exchanges_weight(plan.strategy, name))


def traffic(plan: Plan, data: Data, parameters: int) -> str:
    """Estimate the traffic of all clients in a round, in a stream's first task."""
    scenario, strategy = plan.scenario, plan.strategy
    sampled = scenario.clients_per_round or scenario.data.clients
    if scenario.asynchronous is not None:
        sampled = scenario.asynchronous.buffer
    if strategy.capabilities.sends == "nothing":
        return "none"
    if plan.graph is not None:
        return _links_traffic(plan, data, parameters)
    if "weights" in strategy.capabilities.needs:
        from fedkd.data import first_task
        from fedkd.fusion import Kind, WeightAveraging

        number, first = np.dtype(scenario.fusion.upload_dtype).itemsize, first_task(data)
        beside = Kind.TRANSFER_LOGITS in strategy.capabilities.kinds.values()
        sent = sampled * (parameters + (len(first.transfer_x) * first.classes if beside else 0))
        # A strategy for a learner may send fewer weights, or other arrays in some rounds.
        weighed = strategy.capabilities.brings_model or isinstance(strategy, WeightAveraging)
        least = "about" if weighed or strategy.capabilities.learner is not None else "at least"
        told = f"{least} {format_bytes(sent * number)} up, {format_bytes(sent * 4)} down per round"
        return f"{told} (clients send {strategy.capabilities.sends})"
    up, down = _tried(plan, data)
    if scenario.asynchronous is not None:  # the trial round has all clients
        up, down = (round(sent * sampled / scenario.data.clients) for sent in (up, down))
    when = "in the first round" if strategy.capabilities.upload_changes else "per round"
    told = f"clients send {strategy.capabilities.sends}"
    return f"about {format_bytes(up)} up, {format_bytes(down)} down {when} ({told})"


def kept_rows(plan: Plan, data: Data, parameters: int) -> Iterator[str]:
    """Yield the number and memory of the uploads kept between rounds, if any."""
    from fedkd.plan import max_stored_uploads

    if (kept := max_stored_uploads(plan)) == 0:
        return
    each = 4.0 * parameters
    if "weights" not in plan.capabilities.needs:
        each = _tried(plan, data)[0] / max(len(_first_to_train(plan)[1]), 1)
    told = f"about {format_bytes(int(kept * each))} in memory between rounds"
    yield row("", f"{told}: at most {count_noun(kept, 'upload')}")


def fusion_rows(plan: Plan, data: Data) -> Iterator[str]:
    """Yield the memory of a large fusion on the server."""
    from fedkd.clients import estimate_fusion_bytes

    if (needed := estimate_fusion_bytes(plan, data)) >= LARGE_FUSION:
        yield row("", f"about {format_bytes(needed)} in memory during a fusion")


def _first_to_train(plan: Plan) -> tuple[int, list[int]]:
    rounds = range(1, plan.schedule.rounds + 1)
    round = next((round for round in rounds if plan.schedule.participants(round)), 1)
    return round, list(plan.schedule.participants(round))


def _tried(plan: Plan, data: Data) -> tuple[int, int]:
    from fedkd.server import trial_exchange

    strategy = plan.scenario.fusion.strategy
    when = " in a trial round"
    with plugin_call(f"'{strategy}'", "fusion.strategy", when), np.errstate(all="ignore"):
        return trial_exchange(plan, data)


def _links_traffic(plan: Plan, data: Data, parameters: int) -> str:
    """Estimate the traffic over all links in a round, in a stream's first task."""
    assert plan.graph is not None
    scenario = plan.scenario
    round, clients = _first_to_train(plan)
    heard = plan.graph.edges(round)[np.ix_(clients, clients)]
    if "weights" in plan.capabilities.needs:
        groups = np.array([id(plan.groups[client]) for client in clients])
        heard = heard & (groups[:, None] == groups[None, :])
        each = parameters * np.dtype(scenario.fusion.upload_dtype).itemsize
    else:
        each = _tried(plan, data)[0] // max(len(clients), 1)
    links = int(heard.sum()) - len(clients)
    told = f"about {format_bytes(links * each)} over {count_noun(links, 'link')} in round {round}"
    told += f" (clients send {plan.capabilities.sends})"
    return told + ", plus relayed messages" * scenario.topology.relay


def sketches(plan: Plan, data: Data, model: Any) -> str:
    """Describe the extra traffic at the end of a task with `fusion.orthogonal`, if any."""
    from fedkd.data import FederatedStream

    settings = plan.scenario.fusion.orthogonal
    if settings is None or not isinstance(data, FederatedStream):
        return ""
    from fedkd.server import WeightRoles, exchanged_bytes

    weights = WeightRoles.of(model, plan.schedule.order(0), [task.units for task in data])
    up, most = exchanged_bytes(settings, weights.fan_in)
    clients = plan.scenario.clients_per_round or plan.scenario.data.clients
    sent = f"about {format_bytes(clients * up)} of sketches up"
    return f"at the end of a task: {sent}, at most {format_bytes(clients * most)} of protected subspaces down"


def measure_rows(plan: Plan, data: Data, models: Sequence[Any], work: Workload) -> Iterator[str]:
    """Yield the additional measurements and their cost."""
    from fedkd.clients import count_trial_operations
    from fedkd.data import FederatedData

    scenario = plan.scenario
    wanted = None if scenario.measure is None else scenario.measure.transferability
    if wanted is None or not isinstance(data, FederatedData):
        return
    reached = [round for round in wanted.rounds if round <= scenario.rounds]
    clients = scenario.clients_per_round or scenario.data.clients
    samples = len(data.transfer_x)
    rounds = f"in round{'s' * (len(reached) > 1)} {', '.join(map(str, reached))}"
    copies = count_noun(clients**2, "distillation")
    epochs = f", {wanted.epochs} epochs" * (wanted.epochs > 1)
    yield row("measure", f"transferability {rounds}: {copies} of {samples:,} samples{epochs} each")
    times = count_trial_operations(plan, data, models) / max(work.training, 1.0)
    down = 4 * clients**2 * samples * data.classes
    up = clients * samples * (np.dtype(scenario.fusion.upload_dtype).itemsize * data.classes + 4 * clients)
    told = f"about {times:.1f} times the compute of a round's local training"
    yield row("", f"{told}; {format_bytes(up)} up, {format_bytes(down)} down each time")


def evaluation(work: Workload) -> str:
    """Describe the evaluations' share of compute, and the keys that halve a large one."""
    told = f"≈ {100 * work.share:.0f} % of compute"
    if work.test < work.test_set:
        told += f", on {work.test:,} of {work.test_set:,} common test samples before the last round"
    *values, last = [f"{key} = {value}" for key, value in work.remedies().items()] or [""]
    half = f"{', '.join(values)} or {last}" if values else last
    return f"{told}; to halve it: {half}" if half else told
