"""Whether models have the parts that a strategy tells apart, and data the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedkd.data.federated import FederatedData
from fedkd.data.load import Data
from fedkd.errors import UserError
from fedkd.fusion.averaging import HEAD, in_head
from fedkd.fusion.strategy import teaches_targets
from fedkd.models.build import blank_inputs
from fedkd.models.mode import predicting
from fedkd.plan.plan import Plan
from fedkd.scenario.schema import Scenario

KEY = "fusion.strategy"


def check_parts(scenario: Scenario, models: Sequence[nn.Module], *, alike: bool) -> None:
    """Refuse models whose body and head cannot be told apart, or whose heads differ if they must be
    `alike`.
    """
    name = scenario.fusion.strategy
    models_of: dict[tuple[tuple[int, ...], ...], str] = {}
    for group, model in zip(scenario.clients, models, strict=True):
        trained = {weight: p for weight, p in model.named_parameters() if p.requires_grad}
        parts = {in_head(weight) for weight in trained}
        if parts != {True, False}:
            missing = f"none called '{HEAD}…'" if True not in parts else f"none but '{HEAD}…'"
            raise UserError(
                f"'{name}' tells a model's body and head apart by the names of its weights; model"
                f" '{group.model}' has {missing}",
                key=KEY,
            )
        head = tuple(tuple(p.shape) for weight, p in trained.items() if in_head(weight))
        models_of.setdefault(head, group.model)
    if alike and len(models_of) > 1:
        told = (
            f"{' and '.join('×'.join(map(str, shape)) for shape in head)} of '{model}'"
            for head, model in models_of.items()
        )
        raise UserError(f"'{name}' averages heads; must be of one shape, got {', '.join(told)}", key=KEY)


def check_relations(plan: Plan, models: Sequence[Any]) -> None:
    """Refuse relations of transfer samples where there are no targets of them, or no features."""
    scenario, key = plan.scenario, "fusion.relations"
    if not teaches_targets(plan.strategy):
        raise UserError(
            f"not allowed with '{scenario.fusion.strategy}', whose guidance is no targets of transfer samples"
            " that could be related",
            key=key,
        )
    for group, model in zip(scenario.clients, models, strict=True):
        if not isinstance(model, nn.Module) or not (hasattr(model, "features") and hasattr(model, "head")):
            raise UserError(
                f"compares penultimate features; model '{group.model}' has no `features` and `head`", key=key
            )


def most_classes(data: Data) -> int:
    """Return the classes of a prediction; of a stream, those of the task that has most."""
    return data.classes if isinstance(data, FederatedData) else max(len(task.units) for task in data)


def check_three_classes(name: str, data: Data) -> None:
    """Refuse classes of which no more than one is not true."""
    known = [data.classes] if isinstance(data, FederatedData) else [len(task.units) for task in data]
    fewest = min(known)
    if fewest < 3:
        where = "" if isinstance(data, FederatedData) else " in every task"
        raise UserError(
            f"'{name}' distils between the classes that are not true; needs at least 3{where}, got {fewest}",
            key=KEY,
        )


def has_linear_head(model: Any) -> bool:
    """Return whether a model's head is one linear layer with biases."""
    head = getattr(model, "head", None)
    return isinstance(head, nn.Linear) and head.bias is not None


def check_feature_widths(scenario: Scenario, data: Data, models: Sequence[Any]) -> None:
    """Refuse features of several widths where they have to be compared."""
    inputs, widths = blank_inputs(2, data.input_shape, data.input_dtype), []
    for model in models:
        with predicting(model):
            widths.append(model.features(inputs).flatten(1).shape[1])
    for group, width in zip(scenario.clients, widths, strict=True):
        if width != widths[0]:
            first = scenario.clients[0].model
            raise UserError(
                f"'{scenario.fusion.strategy}' needs models whose features are equally wide, got {widths[0]}"
                f" ('{first}') and {width} ('{group.model}')",
                key="clients.model",
            )
