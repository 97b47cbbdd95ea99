"""Checks of memory: estimates for all clients' models from one of each architecture."""

import os
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from fedkd.clients.factory import model_factories, model_outputs
from fedkd.clients.local.train_jobs import round_optimizer
from fedkd.data import Data, FederatedStream, first_task, machine_memory
from fedkd.errors import UserError, refuse_if
from fedkd.fusion import RoundExtent, ServerCost, overrides_hook
from fedkd.models import Estimator, build_group_models
from fedkd.plan import Plan, check_requirements, make_auxiliaries, max_stored_uploads
from fedkd.training import resolve_device

STATES_PER_BATCH = 128
"""Clients whose states the server's process holds to save or restore them, and again to write them."""
LIVE_SHARE = 0.25
"""Share of the memory of a machine or a GPU for idle clients."""
OVERHEAD = 16_384
"""Bytes of a client besides its arrays."""
ESTIMATOR_BYTES = 1_000_000
"""Assumed size of an estimator: about a forest of a hundred small trees."""


def build_checked_models(plan: Plan, data: Data) -> list[nn.Module | Estimator]:
    """Build one model of every group; `UserError`: memory or the strategy's requirements refuse it."""
    shape, outputs = data.input_shape, model_outputs(plan, data)
    copies = copies_in_training(plan)
    limit = machine_memory() // copies, f"with {copies - 1} more copies during training"
    models = build_group_models(plan.scenario, shape, outputs, data.kind, limit)
    _check_fit(plan, _sizes(plan, data, models))
    _check_kept(plan, data, models)
    _check_fusion(plan, data)
    check_requirements(plan, data, models)
    return models


def made_auxiliaries(
    plan: Plan, data: Data, models: Sequence[nn.Module | Estimator]
) -> list[dict[str, nn.Module]]:
    """Return the auxiliary networks, by name, of a client of every group."""
    if not overrides_hook(plan.strategy, "aux_networks"):
        return [{} for _ in models]
    factories = dict(zip(map(id, plan.groups), model_factories(plan, data), strict=True))
    return [
        make_auxiliaries(plan.strategy, factories[id(group)], model, plan.scenario.seed, 0)
        if isinstance(model, nn.Module) and id(group) in factories  # groups with clients
        else {}
        for group, model in zip(plan.scenario.clients, models, strict=True)
    ]


def _sizes(plan: Plan, data: Data, models: Sequence[nn.Module | Estimator]) -> list[int]:
    """Return the bytes of all networks of a client of every group; 0 for an estimator."""
    return [
        _size(model) + sum(map(_size, made.values())) if isinstance(model, nn.Module) else 0
        for model, made in zip(models, made_auxiliaries(plan, data, models), strict=True)
    ]


def _of_all_clients(plan: Plan, sizes: Sequence[int]) -> int:
    number = Counter(map(id, plan.groups))
    return sum(number[id(group)] * size for group, size in zip(plan.scenario.clients, sizes, strict=True))


def copies_in_training(plan: Plan) -> int:
    """Return the copies of a model's size during training: weights, gradients, moments."""
    optimizer = round_optimizer(plan.scenario, plan.scenario.training.lr, 1)
    return 2 + len([slot for slot in optimizer.slots if slot != "step"])


def estimate_client_bytes(plan: Plan, data: Data, models: Sequence[nn.Module | Estimator]) -> int:
    """Return the approximate bytes of an idle client, the mean over all groups.

    It holds a model, a kept optimiser state, guidance, and a learner's memory of each task.
    """
    guidance = 4 * len(first_task(data).transfer_x) * model_outputs(plan, data)
    # Guidance before its evaluation, and measurements of it until the next.
    guidance *= max(1, plan.capabilities.trials) + (plan.recipe.kd_weight > 0)
    if plan.capabilities.brings_model or plan.capabilities.pools:
        return OVERHEAD + guidance
    copies = 1 + plan.capabilities.keeps_models
    if plan.scenario.training.optimizer_state == "kept":
        copies += copies_in_training(plan) - 2
    if isinstance(data, FederatedStream):
        copies += len(data)
    weights = _of_all_clients(plan, [size or ESTIMATOR_BYTES for size in _sizes(plan, data, models)])
    return OVERHEAD + guidance + copies * weights // len(plan.groups)


def max_resident_clients(of_client: int, share: float, gpu_share: float, device: torch.device) -> int:
    """Return the number of idle clients of `of_client` bytes that fit into a process's memory.

    `share` is the process's share of this machine's memory, `gpu_share` of a GPU, or the number of GPUs.
    """
    memory = share * machine_memory()
    if device.type == "cuda":
        memory = min(gpu_share, 1.0) * torch.cuda.get_device_properties(device).total_memory
    return max(1, int(LIVE_SHARE * memory) // of_client)


def _check_fit(plan: Plan, sizes: Sequence[int]) -> None:
    """Refuse models that exceed this machine's memory, if they are kept on it."""
    scenario = plan.scenario
    elsewhere = scenario.engine.address is not None or resolve_device(scenario.engine.device).type != "cpu"
    if elsewhere:
        return
    clients, at_work = scenario.data.clients, 1
    if scenario.engine.kind == "ray":
        at_work = min(clients, scenario.engine.actors or os.cpu_count() or 1)
    if plan.capabilities.brings_model or plan.capabilities.pools:  # one of an architecture in every process
        kept = 2.0 * sum(sizes)
    else:
        each = _of_all_clients(plan, sizes) / clients
        live = scenario.engine.live_clients
        living = min(clients * each, LIVE_SHARE * machine_memory())
        if live is not None:
            living = min(clients, live * at_work) * each
        kept = living + min(clients, 2 * STATES_PER_BATCH) * each  # one portion is written, one comes in
    needed = kept + at_work * (copies_in_training(plan) - 1) * max(sizes)
    if needed > machine_memory():
        raise UserError(
            f"{clients} clients' models, with training and checkpoints, need {needed / 1e9:,.1f} GB; this"
            f" machine has {machine_memory() / 1e9:,.1f} GB",
            key="clients",
        )


def estimate_fusion_bytes(plan: Plan, data: Data) -> int:
    """Return the bytes of a round's fusion on the server; 0: unknown."""
    strategy, scenario = plan.strategy, plan.scenario
    if plan.graph is not None or not isinstance(strategy, ServerCost):
        return 0
    recalls = strategy.capabilities.stale_decay is not None
    fused = scenario.data.clients if recalls else scenario.clients_per_round or scenario.data.clients
    task = first_task(data)
    return strategy.server_memory(RoundExtent(fused, len(task.transfer_x), task.classes))


def _check_fusion(plan: Plan, data: Data) -> None:
    """Refuse a fusion that exceeds the server's memory."""
    needed, there = estimate_fusion_bytes(plan, data), machine_memory()
    told = f"the fusion of a round needs {needed / 1e9:,.1f} GB; this machine has {there / 1e9:,.1f} GB"
    refuse_if(needed > there, told, "clients_per_round")


def _check_kept(plan: Plan, data: Data, models: Sequence[nn.Module | Estimator]) -> None:
    """Refuse stored uploads that exceed the server's memory: weights, or predictions."""
    each = 2 * len(first_task(data).transfer_x) * model_outputs(plan, data)
    if "weights" in plan.capabilities.needs:
        each = max((_size(model) for model in models if isinstance(model, nn.Module)), default=0)
    kept = max_stored_uploads(plan) * each
    if kept > machine_memory():
        scenario = plan.scenario
        unwaiting = "asynchronous" if scenario.asynchronous is not None else "fusion.stale_decay"
        raise UserError(
            f"{max_stored_uploads(plan):,} stored uploads need {kept / 1e9:,.1f} GB; this machine has"
            f" {machine_memory() / 1e9:,.1f} GB",
            key="fusion.knowledge_cache" if scenario.fusion.knowledge_cache is not None else unwaiting,
        )


def _size(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
