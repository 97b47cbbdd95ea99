"""Flower's own strategies by name, ``"flwr:FedAdam"``, and their hyper-parameters."""

from __future__ import annotations

import ast
import inspect
import logging
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from fedkd.errors import UserError, did_you_mean
from fedkd.plugins import Outline, find_outline, public_names
from fedkd.scenario import FLOWER_PREFIX

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

_MODULE = "flwr.serverapp.strategy"

# Set by fedkd: the scenario selects participants, and the messages have their keys.
_OWN_ARGUMENTS = {
    **dict.fromkeys(("fraction_train", "fraction_evaluate"), 1.0),
    **dict.fromkeys(("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), 1),
}
_HIDDEN = {
    *_OWN_ARGUMENTS,
    *("self", "weighted_by_key", "arrayrecord_key", "configrecord_key", "train_loss_key", "selection_rule"),
    *("train_metrics_aggr_fn", "evaluate_metrics_aggr_fn"),
}
# FedProx with Flower's default μ = 0 is FedAvg.
_DEFAULTS: dict[str, dict[str, Any]] = {"FedProx": {"proximal_mu": 0.01}}
_HINTS = {"client_learning_rate": ", such as that of training.lr"}
# Wrappers around another strategy, and strategies of tree models: neither averages a network's weights.
_NOT_OFFERED = {"FedXgbBagging", "FedXgbCyclic"}


@cache
def flower_strategy_names() -> tuple[str, ...]:
    """Return the names of the installed Flower's strategies for a scenario."""
    from flwr.serverapp import strategy as flower
    from flwr.serverapp.strategy import Strategy

    return tuple(
        name
        for name in flower.__all__
        if name not in _NOT_OFFERED
        and inspect.isclass(cls := getattr(flower, name))
        and issubclass(cls, Strategy)
        and not inspect.isabstract(cls)
        and "strategy" not in inspect.signature(cls).parameters
    )


def flower_outlines() -> dict[str, Outline]:
    """Return the outlines of `flower_strategy_names`, without importing Flower."""
    public = (find_outline(_MODULE, name) for name in public_names(_MODULE) if name not in _NOT_OFFERED)
    return {outline.name: outline for outline in public if outline is not None and _averages(outline)}


def _averages(outline: Outline) -> bool:
    lineage = list(outline.lineage())
    made = next((body["__init__"] for base in lineage if "__init__" in (body := base.members())), None)
    wraps = isinstance(made, ast.FunctionDef) and "strategy" in {arg.arg for arg in made.args.args}
    return not wraps and any(base.name == "Strategy" for base in lineage[1:])


def flower_hyperparameters(name: str) -> dict[str, Any]:
    """Return a strategy's hyper-parameters and defaults; ``flwr:`` is optional, unknown is a `UserError`."""
    cls = _strategy_class(name)
    parameters = inspect.signature(cls).parameters.values()
    theirs = {parameter.name: parameter.default for parameter in parameters if parameter.name not in _HIDDEN}
    return theirs | _DEFAULTS.get(cls.__name__, {})


def make_flower_strategy(name: str, hyperparameters: Mapping[str, Any]) -> Strategy:
    """Return the strategy, set to take every node; raise `UserError` for wrong names or values."""
    from fedkd.federation.compat import flower_logs_from

    cls = _strategy_class(name)
    known = flower_hyperparameters(name)
    for key in hyperparameters:
        if key not in known:
            raise UserError(f"unknown key; {did_you_mean(key, known)}", key=f"fusion.{key}")
    for key, default in known.items():
        if default is inspect.Parameter.empty and key not in hyperparameters:
            raise UserError(f"flwr:{cls.__name__} needs a value{_HINTS.get(key, '')}", key=f"fusion.{key}")
    accepted = inspect.signature(cls).parameters
    for key, value in hyperparameters.items():
        _check_type(key, value, accepted[key].annotation)
    own = {key: value for key, value in _OWN_ARGUMENTS.items() if key in accepted}
    try:
        with flower_logs_from(logging.CRITICAL + 1):
            return cls(**own, **{**_DEFAULTS.get(cls.__name__, {}), **hyperparameters})
    except (TypeError, ValueError) as error:
        raise UserError(f"flwr:{cls.__name__}: {error}", key="fusion") from error


def _check_type(key: str, value: Any, wanted: Any) -> None:
    """Refuse a value of a wrong type, which Flower notices too late, and a negative μ."""
    allowed = {int: (int,), float: (int, float)}.get(wanted)
    if allowed and (isinstance(value, bool) or not isinstance(value, allowed)):
        name = "a whole number" if wanted is int else "a number"
        raise UserError(f"must be {name}, got {value!r}", key=f"fusion.{key}")
    if key == "proximal_mu" and not value >= 0:
        raise UserError(f"must be ≥ 0, got {value!r}", key=f"fusion.{key}")


def _strategy_class(name: str) -> Any:
    name = name.removeprefix(FLOWER_PREFIX)
    names = flower_strategy_names()
    if name not in names:
        raise UserError(
            f"no usable strategy of Flower named '{name}'; {did_you_mean(name, names)}",
            key="fusion.strategy",
        )
    from flwr.serverapp import strategy as flower

    return getattr(flower, name)
