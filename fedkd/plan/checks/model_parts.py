"""Requirements on models' parts, classes of data, and predictions."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedkd.data import Data, FederatedData
from fedkd.errors import UserError, refuse_if
from fedkd.fusion import HEAD_PREFIX, Kind, distils_targets, is_head_weight, overrides_hook
from fedkd.models import blank_inputs, evaluation_mode
from fedkd.plan.plan import Plan
from fedkd.scenario import Scenario

KEY = "fusion.strategy"


def check_parts(scenario: Scenario, models: Sequence[nn.Module], *, alike: bool) -> None:
    """Raise a `UserError` for models without body and head, or with `alike` for unequal heads."""
    name = scenario.fusion.strategy
    models_of: dict[tuple[tuple[int, ...], ...], str] = {}
    for group, model in zip(scenario.clients, models, strict=True):
        trained = {weight: p for weight, p in model.named_parameters() if p.requires_grad}
        parts = {is_head_weight(weight) for weight in trained}
        missing = f"no weights '{HEAD_PREFIX}…'" if True not in parts else f"only weights '{HEAD_PREFIX}…'"
        refuse_if(
            parts != {True, False},
            f"'{name}' needs models with a body and a head, by the names of weights; model '{group.model}'"
            f" has {missing}",
            KEY,
        )
        head = tuple(tuple(p.shape) for weight, p in trained.items() if is_head_weight(weight))
        models_of.setdefault(head, group.model)
    if alike and len(models_of) > 1:
        told = (
            f"{' and '.join('×'.join(map(str, shape)) for shape in head)} of '{model}'"
            for head, model in models_of.items()
        )
        raise UserError(f"'{name}' needs heads of the same shape, got {', '.join(told)}", key=KEY)


def check_relations(plan: Plan, models: Sequence[Any]) -> None:
    """Raise a `UserError` for `fusion.relations` without targets or features."""
    scenario, key = plan.scenario, "fusion.relations"
    refuse_if(
        not distils_targets(plan.strategy),
        f"not allowed with '{scenario.fusion.strategy}', which has no targets of transfer samples",
        key,
    )
    for group, model in zip(scenario.clients, models, strict=True):
        refuse_if(
            not (isinstance(model, nn.Module) and has_features(model)),
            f"compares penultimate features; model '{group.model}' has no `features` and `head`",
            key,
        )


def _class_counts(data: Data) -> list[int]:
    """Return the number of classes of a prediction, for each task of a stream."""
    return [data.classes] if isinstance(data, FederatedData) else [len(task.units) for task in data]


def check_three_classes(name: str, data: Data) -> None:
    """Raise a `UserError` for data or tasks with fewer than three classes."""
    fewest = min(_class_counts(data))
    where = "" if isinstance(data, FederatedData) else " in every task"
    told = f"'{name}' distils the wrong classes; it needs at least 3 classes{where}, got {fewest}"
    refuse_if(fewest < 3, told, KEY)


def has_features(model: Any) -> bool:
    """Return whether a model has penultimate features and a head."""
    return hasattr(model, "features") and hasattr(model, "head")


def has_linear_head(model: Any) -> bool:
    """Return whether a model's head is one linear layer with biases."""
    head = getattr(model, "head", None)
    return isinstance(head, nn.Linear) and head.bias is not None


def check_feature_widths(scenario: Scenario, data: Data, models: Sequence[Any]) -> None:
    """Raise a `UserError` for features of different widths."""
    inputs, widths = blank_inputs(2, data.input_shape, data.input_dtype), []
    told = f"'{scenario.fusion.strategy}' needs models with equal feature widths, got"
    for model in models:
        with evaluation_mode(model):
            widths.append(model.features(inputs).flatten(1).shape[1])
    first = f"{widths[0]} ('{scenario.clients[0].model}')"
    for group, width in zip(scenario.clients, widths, strict=True):
        refuse_if(width != widths[0], f"{told} {first} and {width} ('{group.model}')", "clients.model")


def check_transferability(plan: Plan, models: Sequence[Any], transfer_size: int) -> None:
    """Raise a `UserError` for a transferability map without networks or transfer samples."""
    scenario, key = plan.scenario, "measure.transferability"
    if scenario.measure is None or scenario.measure.transferability is None:
        return
    refuse_if(plan.learner is not None, "not allowed in a stream of tasks", key)
    for group, model in zip(scenario.clients, models, strict=True):
        told = f"needs networks, but model '{group.model}' is not a network"
        refuse_if(not isinstance(model, nn.Module), told, key)
    told = "needs all predictions; use at = 'fusion' in fusion.filters"
    refuse_if(any(wanted.at == "upload" for wanted in scenario.fusion.filters), told, key)
    refuse_if(transfer_size == 0, "needs transfer samples, but data.transfer.size is 0", key)


def check_filters(plan: Plan, data: Data) -> None:
    """Raise a `UserError` for filters without predictions, or an `upload_top` above the classes."""
    fusion, strategy, key = plan.scenario.fusion, plan.strategy, "fusion.filters"
    kinds, classes = strategy.capabilities.kinds.values(), max(_class_counts(data))
    told = f"must be ≤ {classes}, the number of classes, got {fusion.upload_top}"
    refuse_if((fusion.upload_top or 0) > classes, told, "fusion.upload_top")
    plain = not overrides_hook(strategy, "targets_of") and distils_targets(strategy)
    refuse_if(
        fusion.filters and (not plain or Kind.TRANSFER_LOGITS not in kinds or Kind.WEIGHTS in kinds),
        f"not allowed with '{fusion.strategy}': filters need a strategy that only turns predictions on"
        " transfer samples into targets",
        key,
    )
    for place, wanted in enumerate(fusion.filters):
        refuse_if(
            wanted.by == "relevance" and not strategy.capabilities.mixes,
            "'relevance' needs a strategy that mixes predictions for each client, such as 'knfu', got"
            f" '{fusion.strategy}'",
            f"{key}.{place}.by",
        )
        told = "must be 'fusion' with fusion.knowledge_cache, which caches all predictions"
        refuse_if(wanted.at == "upload" and fusion.knowledge_cache is not None, told, f"{key}.{place}.at")
