"""Requirements of a fusion strategy on clients and data."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from fedkd.data import Data, FederatedData, check_memory_budget, first_task
from fedkd.errors import UserError, refuse_if
from fedkd.fusion import ServerModel
from fedkd.models import build_model
from fedkd.plan.checks.capability_table import Case, check_table
from fedkd.plan.checks.cross_field import check_adapters, check_one_architecture
from fedkd.plan.checks.graph import check_graph
from fedkd.plan.checks.learner import check_learner
from fedkd.plan.checks.model_parts import (
    check_feature_widths,
    check_filters,
    check_parts,
    check_relations,
    check_three_classes,
    check_transferability,
    has_features,
    has_linear_head,
)
from fedkd.plan.checks.streams import check_backward, check_class_stream, check_masks, check_orthogonal
from fedkd.plan.plan import Plan
from fedkd.scenario import ClientGroup

KEY = "fusion.strategy"


def check_requirements(plan: Plan, data: Data, models: Sequence[Any]) -> None:  # noqa: C901
    """Raise a `UserError` if data or `models` (one per group) do not suit the strategy."""
    scenario, needs = plan.scenario, plan.capabilities.needs
    name = scenario.fusion.strategy
    check_table(Case(scenario, plan.strategy, plan.learner))
    for group, model in zip(scenario.clients, models, strict=True):
        if needs & {"gradients", "weights"} and not isinstance(model, nn.Module):
            what = "exchanges weights" if "weights" in needs else "trains by gradients"
            raise UserError(f"'{name}' {what}, but model '{group.model}' is not a network", key=KEY)
        told = f"'{name}' compares penultimate features; model '{group.model}' has no `features` and `head`"
        refuse_if("features" in needs and not has_features(model), told, KEY)
        told = f"'{name}' needs a head of one linear layer with biases; model '{group.model}' has another"
        refuse_if("linear_head" in needs and not has_linear_head(model), told, KEY)
    if "equal_features" in needs:
        check_feature_widths(scenario, data, models)
    check_graph(plan)
    if "masks" in needs:
        check_masks(plan)
    check_filters(plan, data)
    if scenario.fusion.relations is not None:
        check_relations(plan, models)
    if "adapter" in needs:
        check_adapters(scenario)
    if "one_architecture" in needs:
        what = "averages masks" if "masks" in needs else "averages parameters"
        check_one_architecture(scenario, what)
    if "parts" in needs:
        check_parts(scenario, models, alike="like_heads" in needs)
    if "three_classes" in needs:
        check_three_classes(name, data)
    if "plain_sgd" in needs:
        training, reason = scenario.training, f"a local step of '{name}' is lr times a gradient"
        chosen, stops = training.optimizer, training.early_stopping is not None
        refuse_if(chosen != "sgd", f"must be 'sgd', got '{chosen}': {reason}", "training.optimizer")
        told = f"must be 0, got {training.momentum:g}: {reason}"
        refuse_if(training.momentum, told, "training.momentum")
        told = f"not allowed, because it returns to earlier weights: {reason}"
        refuse_if(stops, told, "training.early_stopping")
    if "class_stream" in needs:
        check_class_stream(plan)
    if "normalised_samples" in needs:
        _check_generated(plan, data)
    told = f"'{name}' needs the labels of the transfer set on the server; use data.transfer.source ="
    unlabelled = "transfer_labels" in needs and first_task(data).transfer_y is None
    refuse_if(unlabelled, f'{told} "holdout"', KEY)
    if isinstance(plan.strategy, ServerModel) and plan.strategy.server_model is not None:
        _check_server_model(plan, plan.strategy, first_task(data))
    if plan.capabilities.pretrain_epochs > 0:
        _check_pretraining(plan, first_task(data), models)
    check_transferability(plan, models, len(first_task(data).transfer_x))
    if scenario.fusion.backward_transfer:
        check_backward(plan)
    if scenario.fusion.orthogonal is not None:
        check_orthogonal(plan, models[0])
    partner, learner = plan.capabilities.learner, plan.learner
    told = f"'{name}' needs the learner '{partner}' in a stream of tasks; set"
    alone = partner is not None and (learner is None or learner.name != partner)
    refuse_if(alone, f'{told} continual.learner = "{partner}"', KEY)
    if plan.learner is not None:
        check_learner(plan.learner, plan, data, models)


def _check_server_model(plan: Plan, strategy: ServerModel, data: FederatedData) -> None:
    group = ClientGroup(model=strategy.server_model or "", args=dict(strategy.server_args))
    path = plan.scenario.plugin_path
    try:
        build_model(group, data.input_shape, data.classes, seed=0, plugin_path=path, kind=data.kind)
    except UserError as error:
        key = (error.key or "clients.model").replace("clients.", "fusion.server_", 1)
        raise UserError(error.message, key=key, file=error.file) from error


def _check_pretraining(plan: Plan, data: FederatedData, models: Sequence[Any]) -> None:
    key, source = "fusion.pretrain_epochs", plan.scenario.data.transfer.source
    given, labels = plan.capabilities.pretrain_epochs, data.public_y
    refuse_if(plan.learner is not None, f"must be 0 in a stream of tasks, got {given}", key)
    for group, model in zip(plan.scenario.clients, models, strict=True):
        told = f"must be 0, as model '{group.model}' is not a network, got {given}"
        refuse_if(not isinstance(model, nn.Module), told, key)
    if labels is None or not len(labels):
        raise UserError(
            f"must be 0 without a labelled transfer set, got {given} with '{source}'; use"
            ' data.transfer.source = "holdout" or another data set',
            key=key,
        )
    if data.scale is not None:
        return
    told = f"must be 0, as labels of '{source}' go up to {labels.max()}, but the clients' models have"
    refuse_if(labels.max() >= data.classes, f"{told} {data.classes} outputs, got {given}", key)


def _check_generated(plan: Plan, data: Data) -> None:
    name, settings = plan.scenario.fusion.strategy, plan.scenario.data
    count, clients = plan.capabilities.generated_samples, settings.clients
    told = f"'{name}' generates vectors and images, but the samples are {data.kind.plural}"
    refuse_if(data.kind.name not in ("vector", "image"), told, KEY)
    told = f"must be true with '{name}', which generates samples of mean 0 and variance 1"
    refuse_if(not settings.normalise, told, "data.normalise")
    size = 4 * count * math.prod(data.input_shape) * (clients + 1)
    check_memory_budget(size, f"{count:,} samples on each of {clients:,} clients take", key="fusion.samples")
