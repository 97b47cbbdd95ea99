"""Flower's own strategies, by name: ``"flwr:FedAdam"``.

They average weights, so every client has the same architecture. Batch-normalisation statistics are
averaged like parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedkd.errors import UserError, did_you_mean
from fedkd.federation.arrays import from_record, to_record
from fedkd.scenario.schema import FLOWER_PREFIX

# Set by fedkd: who takes part in a round is the scenario's business, and the keys are the messages'.
_OWN_ARGUMENTS = {
    "fraction_train": 1.0,
    "fraction_evaluate": 1.0,
    "min_train_nodes": 1,
    "min_evaluate_nodes": 1,
    "min_available_nodes": 1,
}
_HIDDEN = {
    *_OWN_ARGUMENTS,
    "self",
    "weighted_by_key",
    "arrayrecord_key",
    "configrecord_key",
    "train_metrics_aggr_fn",
    "evaluate_metrics_aggr_fn",
    "train_loss_key",
    "selection_rule",
}
# Wrappers around another strategy, and strategies of tree models: neither averages a network's weights.
_NOT_OFFERED = {"FedXgbBagging", "FedXgbCyclic"}


def flower_strategy_names() -> list[str]:
    """Return the names of the strategies that the installed Flower ships and a scenario can name."""
    return [
        name
        for name in flower.__all__
        if name not in _NOT_OFFERED
        and inspect.isclass(cls := getattr(flower, name))
        and issubclass(cls, Strategy)
        and not inspect.isabstract(cls)
        and "strategy" not in inspect.signature(cls).parameters
    ]


def flower_hyperparameters(name: str) -> dict[str, Any]:
    """Return the hyper-parameters of a Flower strategy and their defaults.

    Args:
        name: With or without the ``flwr:`` prefix.

    Returns:
        Name to default; `inspect.Parameter.empty` where a value must be given.

    Raises:
        UserError: Flower ships no such strategy.
    """
    parameters = inspect.signature(_strategy_class(name)).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.name not in _HIDDEN}


def make_flower_strategy(name: str, hyperparameters: Mapping[str, Any]) -> Strategy:
    """Return the strategy, set to take every node it is shown.

    Raises:
        UserError: No such strategy, an unknown or missing hyper-parameter, or a value it refuses.
    """
    cls = _strategy_class(name)
    known = flower_hyperparameters(name)
    for key in hyperparameters:
        if key not in known:
            raise UserError(f"unknown key; {did_you_mean(key, known)}", key=f"fusion.{key}")
    for key, default in known.items():
        if default is inspect.Parameter.empty and key not in hyperparameters:
            raise UserError(f"flwr:{cls.__name__} needs a value", key=f"fusion.{key}")
    accepted = inspect.signature(cls).parameters
    for key, value in hyperparameters.items():
        _check_type(key, value, accepted[key].annotation)
    own = {key: value for key, value in _OWN_ARGUMENTS.items() if key in accepted}
    try:
        return cls(**own, **hyperparameters)
    except (TypeError, ValueError) as error:
        raise UserError(f"flwr:{cls.__name__}: {error}", key="fusion") from error


def _check_type(key: str, value: Any, wanted: Any) -> None:
    """Refuse a value that Flower would only stumble over when it computes with it."""
    allowed = {int: (int,), float: (int, float)}.get(wanted)
    if allowed and (isinstance(value, bool) or not isinstance(value, allowed)):
        name = "a whole number" if wanted is int else "a number"
        raise UserError(f"must be {name}, got {value!r}", key=f"fusion.{key}")


def _strategy_class(name: str) -> Any:
    name = name.removeprefix(FLOWER_PREFIX)
    names = flower_strategy_names()
    if name not in names:
        raise UserError(
            f"no strategy of Flower's named '{name}' can be used; {did_you_mean(name, names)}",
            key="fusion.strategy",
        )
    return getattr(flower, name)


def strategy_state(strategy: Strategy) -> dict[str, np.ndarray]:
    """Return the arrays that a Flower strategy carries from round to round (moments, current weights).

    Flower's strategies keep them as attributes: a record, a dict or list of arrays, or a number.
    """
    arrays: dict[str, np.ndarray] = {}
    for attribute, value in vars(strategy).items():
        if isinstance(value, ArrayRecord):
            value = from_record(value)
            kind = "record"
        elif isinstance(value, dict) and value and all(isinstance(v, np.ndarray) for v in value.values()):
            kind = "dict"
        elif isinstance(value, list) and value and all(isinstance(v, np.ndarray) for v in value):
            value = {str(position): item for position, item in enumerate(value)}
            kind = "list"
        else:
            continue
        # The position is kept because Flower's strategies pair arrays up by their order; a file keeps none.
        arrays |= {
            f"{kind}|{attribute}|{position:05d}|{name}": item
            for position, (name, item) in enumerate(value.items())
        }
    return arrays


def restore_strategy(strategy: Strategy, arrays: Mapping[str, np.ndarray]) -> None:
    """Put back what `strategy_state` returned."""
    groups: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for key in sorted(arrays):
        kind, attribute, _, name = key.split("|", 3)
        groups.setdefault((kind, attribute), {})[name] = arrays[key]
    for (kind, attribute), items in groups.items():
        if kind == "record":
            setattr(strategy, attribute, to_record(items))
        elif kind == "list":
            setattr(strategy, attribute, list(items.values()))
        else:
            setattr(strategy, attribute, items)


def in_precision_of(model: ArrayRecord, fused: ArrayRecord) -> ArrayRecord:
    """Return fused weights in the model's own types.

    Some strategies compute in float64, and their result would travel at twice the size.
    """
    arrays = {}
    for name, array in fused.items():
        wanted = np.dtype(model[name].dtype)
        values = np.rint(array.numpy()) if np.issubdtype(wanted, np.integer) else array.numpy()
        arrays[name] = np.asarray(values, dtype=wanted)
    return to_record(arrays)
