"""Assignment of clients to actors: estimated work, longest first."""

import heapq
from collections.abc import Sequence
from statistics import median

from torch import nn

from fedkd.clients import build_checked_models
from fedkd.data import Data, first_task
from fedkd.fusion import trained_epochs
from fedkd.models import Estimator, forward_flops
from fedkd.plan import Plan, evaluated_clients

ESTIMATOR_FLOPS = 1_000_000
"""Assumed cost of a sample for an estimator."""


def client_costs(
    plan: Plan, data: Data, models: Sequence[nn.Module | Estimator] | None = None
) -> list[float]:
    """Return an estimate of each client's FLOPs in a round, which decides only its actor."""
    scenario, models = plan.scenario, models or build_checked_models(plan, data)
    flops = {
        id(group): forward_flops(model, data.input_shape, data.input_dtype)
        if isinstance(model, nn.Module)
        else ESTIMATOR_FLOPS
        for group, model in zip(scenario.clients, models, strict=True)
    }
    first, strategy, fusion = first_task(data), plan.strategy, scenario.fusion
    known = len(first.transfer_x) if strategy.capabilities.uses_transfer_set else 0
    distilled = known * (3 * fusion.distill_epochs + 1)
    # Common weights are tested once a process, each client's own ones separately.
    moments = 1 if strategy.capabilities.brings_model else 2
    tested = moments * len(first.test_y) / scenario.evaluate_every
    evaluated = frozenset(evaluated_clients(scenario))
    epochs = trained_epochs(strategy, scenario.training.local_epochs)
    costs = []
    for client, group in enumerate(plan.groups):
        start, stop = first.train_bounds[client]
        trained = 3 * (stop - start) * epochs * (2 if plan.recipe.kd_weight > 0 else 1)
        samples = trained + distilled + (tested if client in evaluated else 0)
        costs.append(float(flops[id(group)] * samples))
    return costs


def assign_work(costs: Sequence[float], actors: int) -> list[list[int]]:
    """Assign blocks to actors by longest processing time first; return each actor's blocks in that order.

    Graham, "Bounds on Multiprocessing Timing Anomalies", 1969. Every block costs one median in addition, for
    work that does not depend on its size.
    """
    base = median(costs) if costs else 0.0
    order = sorted(range(len(costs)), key=lambda block: (-costs[block], block))
    owned: list[list[int]] = [[] for _ in range(actors)]
    heap = [(0.0, 0, actor) for actor in range(actors)]  # ties: to the actor with the fewest blocks
    for block in order:
        load, blocks, actor = heapq.heappop(heap)
        owned[actor].append(block)
        heapq.heappush(heap, (load + costs[block] + base, blocks + 1, actor))
    return owned
