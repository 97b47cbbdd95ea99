"""A scenario's strategy, learner and metrics, with keys of ``[fusion]`` and ``[continual]``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from fedkd.continual import LEARNERS, load_learner_class
from fedkd.errors import UserError, blaming, refuse_if
from fedkd.fusion import STRATEGIES, GaussianStrategy, load_strategy_class
from fedkd.plan.checks.cross_field import has_one_architecture
from fedkd.plugins import build_part, hyperparameter_names, show_value
from fedkd.scenario import (
    FLOWER_PREFIX,
    Continual,
    Fusion,
    Scenario,
    Section,
    recorded_name,
    unknown_key_message,
)
from fedkd.training import METRICS, task_of

if TYPE_CHECKING:
    from fedkd.continual import Learner
    from fedkd.fusion import FusionStrategy
    from fedkd.training import MetricFunction

Part = TypeVar("Part")


@dataclass(frozen=True)
class Table:
    """A table of the scenario with a part's name and hyper-parameters."""

    name: str
    kind: str
    section: type[Section]

    def check_names(self, part: str, given: Iterable[str], known: Iterable[str]) -> None:
        """Raise a `UserError` for a key that neither the table nor the part has."""
        allowed = [*known, *self.section.model_fields]
        for name in given:
            if name not in allowed:
                told = unknown_key_message(name, allowed, f" for {self.kind} '{part}'")
                raise UserError(told, key=f"{self.name}.{name}")

    def filled_in(self, given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """Check the given hyper-parameters; return all of them in TOML's types."""
        for name, value in given.items():
            _check_like(value, values[name], key=f"{self.name}.{name}")
        return {name: _as_toml(value) for name, value in values.items() if value is not None}


FUSION_TABLE = Table("fusion", "strategy", Fusion)
CONTINUAL_TABLE = Table("continual", "learner", Continual)
_FLOWER = "fedkd.federation.flower_strategies"
"""Loaded by name: other plans do not need Flower."""


RECORDED = frozenset(
    {"loss", "fusion_gain", "positive_flips", "negative_flips", "test_samples", "transfer_gain"}
)
"""Names of other rows of evaluations."""


def bind_strategy(scenario: Scenario) -> tuple[FusionStrategy, dict[str, Any]]:
    """Return a scenario's strategy (for Flower's, the client part) and its hyper-parameters."""
    fusion = scenario.fusion
    if fusion.from_flower:
        return _bind_flower(fusion)
    return _bind(
        FUSION_TABLE,
        fusion.strategy,
        fusion.model_extra,
        lambda name: load_strategy_class(name, scenario.plugin_path, gaussian=scenario.data.is_regression),
        lambda strategy: _settled(strategy, scenario),
    )


def _settled(strategy: FusionStrategy, scenario: Scenario) -> FusionStrategy:
    found = strategy.for_clients(one_architecture=has_one_architecture(scenario))
    return found.with_head(scenario.data.head or "gaussian") if isinstance(found, GaussianStrategy) else found


def bind_learner(continual: Continual, search: Sequence[str] = ()) -> tuple[Learner, dict[str, Any]]:
    """Return the learner of a scenario and its hyper-parameters, defaults included."""
    name = continual.learner
    return _bind(CONTINUAL_TABLE, name, continual.model_extra, lambda name: load_learner_class(name, search))


def bind_metrics(scenario: Scenario) -> dict[str, MetricFunction]:
    """Return the functions of a scenario's metrics besides accuracy, by the name of their rows."""
    found: dict[str, MetricFunction] = {}
    for index, name in enumerate(scenario.metrics):
        if name == "accuracy" and not scenario.data.is_regression:
            continue
        key, recorded = f"metrics.{index}", recorded_name(name)
        allowed = task_of(scenario.data).metrics
        fits = name not in METRICS.builtin or name in allowed
        told = f"'{name}' is no metric of {_task_in_words(scenario)}, which has {', '.join(allowed)}"
        refuse_if(not fits, told, key)
        with blaming(key=key):
            function = METRICS.load(name, scenario.plugin_path)
        taken = recorded in found or recorded in RECORDED or recorded in METRICS.builtin
        told = f"rows of '{name}' would be called '{recorded}', like others; give the function another name"
        refuse_if(name not in METRICS.builtin and (taken or recorded.startswith("accuracy")), told, key)
        told = f"must be called by letters, digits, '_' and '-', got '{recorded}'"
        refuse_if(not re.fullmatch(r"[\w-]+", recorded) or recorded.endswith("_before_fusion"), told, key)
        refuse_if(not callable(function), f"'{name}' is not callable", key)
        found[recorded] = function
    return found


def _task_in_words(scenario: Scenario) -> str:
    data = scenario.data
    if not data.is_regression:
        return "classification (data.task)"
    return f"data.task = 'regression' with data.head = '{data.head or 'gaussian'}'"


def _bind(
    table: Table,
    name: str,
    extra: Mapping[str, Any] | None,
    load: Callable[[str], type[Part]],
    settle: Callable[[Part], Part] = lambda part: part,
) -> tuple[Part, dict[str, Any]]:
    given, key = dict(extra or {}), f"{table.name}.{table.kind}"
    with blaming(key=key):
        cls = load(name)
        known = hyperparameter_names(cls)
        table.check_names(name, given, known)
        part = settle(build_part(cls, name, given, key=key))
    return part, table.filled_in(given, {name: getattr(part, name) for name in known})


def _bind_flower(fusion: Fusion) -> tuple[FusionStrategy, dict[str, Any]]:
    from fedkd.fusion import WeightExchange

    flower = import_module(_FLOWER)
    given = dict(fusion.model_extra or {})
    defaults = flower.flower_hyperparameters(fusion.strategy)
    FUSION_TABLE.check_names(fusion.strategy, given, defaults)
    for name, value in given.items():
        _check_like(value, defaults[name], key=f"fusion.{name}")
    flower.make_flower_strategy(fusion.strategy, given)
    # Flower's strategy was built, so the keys without a default are given.
    return WeightExchange(fusion.strategy), FUSION_TABLE.filled_in({}, {**defaults, **given})


def _check_like(value: Any, model: Any, *, key: str) -> None:
    """Check that `value` has the type of `model`; a Boolean is not a number."""
    kinds = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    kind = type(model)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if kind in kinds and not fits:
        raise UserError(f"must be {kinds[kind]}, got {show_value(value)}", key=key)


def _as_toml(value: Any) -> Any:
    return [_as_toml(item) for item in value] if isinstance(value, tuple | list) else value


def canonical_strategy(name: str) -> str:
    """Return a strategy's name: `FedAvg` and `flwr:fedavg` are `flwr:FedAvg`."""
    found = STRATEGIES.canonical(name.removeprefix(FLOWER_PREFIX))
    of_flower = found.startswith(FLOWER_PREFIX)
    return found if of_flower or not name.startswith(FLOWER_PREFIX) else name


def with_canonical_names(scenario: Scenario) -> Scenario:
    """Return a scenario with the canonical names of strategy, learner and metrics."""
    fusion, continual = scenario.fusion, scenario.continual
    changed: dict[str, Any] = {}
    if (strategy := canonical_strategy(fusion.strategy)) != fusion.strategy:
        changed["fusion"] = fusion.model_copy(update={"strategy": strategy})
    if continual and (learner := LEARNERS.canonical(continual.learner)) != continual.learner:
        changed["continual"] = continual.model_copy(update={"learner": learner})
    metrics = list(dict.fromkeys(map(METRICS.canonical, scenario.metrics)))
    if scenario.data.task == "classification":
        changed["data"] = scenario.data.model_copy(update={"task": None})
    if scenario.data.is_regression and "metrics" not in scenario.model_fields_set:
        metrics = [task_of(scenario.data).metric]
    if metrics != scenario.metrics:
        changed["metrics"] = metrics
    return scenario.model_copy(update=changed) if changed else scenario
