"""Whether all clients' models fit into the memory that there is, found out from one of each architecture."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence

from torch import nn

from fedkd.clients.factory import model_outputs
from fedkd.clients.torch_client import round_optimizer
from fedkd.data.budget import machine_memory
from fedkd.data.load import Data
from fedkd.errors import UserError
from fedkd.models.build import build_group_models
from fedkd.models.estimator import Estimator
from fedkd.plan.plan import Plan
from fedkd.plan.requirements import check_requirements
from fedkd.training.device import resolve_device

OWN_COPIES = 2
"""Of every client's weights: its model, and what a checkpoint is written from."""


def checked_models(plan: Plan, data: Data) -> list[nn.Module | Estimator]:
    """Build one model of every group: what is wrong with one, or with its strategy, is told of now.

    Raises:
        UserError: A model cannot be built, all of them do not fit into memory, or the strategy cannot work
            with them.
    """
    shape, outputs = data.input_shape, model_outputs(plan, data)
    copies = copies_in_training(plan)
    limit = machine_memory() // copies, f"with {copies - 1} more of its size while it is trained"
    models = build_group_models(plan.scenario, shape, outputs, data.input_dtype, limit)
    _check_fit(plan, models)
    check_requirements(plan, data, models)
    return models


def copies_in_training(plan: Plan) -> int:
    """Return how often the size of a model is needed while it is trained: weights, gradients, moments."""
    optimizer = round_optimizer(plan.scenario, plan.scenario.training.lr, 1)
    return 2 + len([slot for slot in optimizer.slots if slot != "step"])


def _check_fit(plan: Plan, models: Sequence[nn.Module | Estimator]) -> None:
    """Refuse models that this machine has no room for, if it is this machine that they are kept on.

    Raises:
        UserError: What they would take.
    """
    scenario = plan.scenario
    elsewhere = scenario.engine.address is not None or resolve_device(scenario.engine.device).type != "cpu"
    if elsewhere:
        return
    sizes = [_size(model) if isinstance(model, nn.Module) else 0 for model in models]
    if plan.strategy.brings_model or plan.strategy.pools:  # one of an architecture in every process
        kept = sum(sizes)
    else:
        number = Counter(map(id, plan.groups))
        kept = sum(number[id(group)] * size for group, size in zip(scenario.clients, sizes, strict=True))
    at_work = 1
    if scenario.engine.kind == "ray":
        at_work = min(scenario.data.clients, scenario.engine.actors or os.cpu_count() or 1)
    needed = OWN_COPIES * kept + at_work * (copies_in_training(plan) - 1) * max(sizes)
    if needed > machine_memory():
        raise UserError(
            f"{scenario.data.clients} clients' models, with what training and checkpoints need besides, take"
            f" {needed / 1e9:,.1f} GB; this machine has {machine_memory() / 1e9:,.1f} GB",
            key="clients",
        )


def _size(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
