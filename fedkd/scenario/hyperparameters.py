"""The strategy's own keys of ``[fusion]``, the learner's of ``[continual]``: checked, defaults filled in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedkd.errors import UserError, did_you_mean
from fedkd.explain import show_value
from fedkd.scenario.schema import Continual, Fusion, Section


@dataclass(frozen=True)
class Table:
    """A table of the scenario that names a part and holds that part's hyper-parameters as well."""

    name: str
    kind: str
    section: type[Section]

    def check_names(self, part: str, given: Iterable[str], known: Iterable[str]) -> None:
        """Refuse a key that neither the table nor the part knows."""
        allowed = [*known, *self.section.model_fields]
        for name in given:
            if name not in allowed:
                raise UserError(
                    f"unknown key for {self.kind} '{part}'; {did_you_mean(name, allowed)}",
                    key=f"{self.name}.{name}",
                )


FUSION = Table("fusion", "strategy", Fusion)
CONTINUAL = Table("continual", "learner", Continual)


def resolve_hyperparameters(fusion: Fusion, search: Sequence[str] = ()) -> dict[str, Any]:
    """Return the strategy's hyper-parameters with every default filled in.

    Args:
        fusion: The table as the user wrote it; its extra keys are the hyper-parameters.
        search: Folders of plug-ins.

    Raises:
        UserError: No such strategy, or it does not know a key or allow a value.
    """
    given = dict(fusion.model_extra or {})
    if fusion.from_flower:
        return _resolve_flower(fusion.strategy, given)
    from fedkd.fusion.registry import make_strategy, strategy_hyperparameters

    name = fusion.strategy
    try:
        known = [parameter.name for parameter in strategy_hyperparameters(name, search)]
        FUSION.check_names(name, given, known)
        strategy = make_strategy(name, given, search)
    except UserError as error:
        raise error.at(key="fusion.strategy") from None
    return _filled_in(FUSION, given, {name: getattr(strategy, name) for name in known})


def resolve_learner(continual: Continual, search: Sequence[str] = ()) -> dict[str, Any]:
    """Return the learner's hyper-parameters with every default filled in.

    Args:
        continual: The table as the user wrote it; its extra keys are the hyper-parameters.
        search: Folders of plug-ins.

    Raises:
        UserError: No such learner, or it does not know a key or allow a value.
    """
    from fedkd.continual.registry import learner_hyperparameters, make_learner

    given, name = dict(continual.model_extra or {}), continual.learner
    try:
        known = [parameter.name for parameter in learner_hyperparameters(name, search)]
        CONTINUAL.check_names(name, given, known)
        learner = make_learner(name, given, search)
    except UserError as error:
        raise error.at(key="continual.learner") from None
    return _filled_in(CONTINUAL, given, {name: getattr(learner, name) for name in known})


def _filled_in(table: Table, given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in given.items():
        _check_like(value, values[name], key=f"{table.name}.{name}")
    return {name: _as_toml(value) for name, value in values.items() if value is not None}


def _resolve_flower(strategy: str, given: Mapping[str, Any]) -> dict[str, Any]:
    from fedkd.federation.flower_strategies import flower_hyperparameters, make_flower_strategy

    defaults = flower_hyperparameters(strategy)
    FUSION.check_names(strategy, given, defaults)
    for name, value in given.items():
        _check_like(value, defaults[name], key=f"fusion.{name}")
    make_flower_strategy(strategy, given)
    merged = {**defaults, **given}
    # What has no default was given: Flower's strategy was built without complaint.
    return {name: _as_toml(value) for name, value in merged.items() if value is not None}


def _check_like(value: Any, model: Any, *, key: str) -> None:
    """Check that `value` has the type of `model`: true is no number, and neither is "3"."""
    kinds = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    kind = type(model)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if kind in kinds and not fits:
        raise UserError(f"must be {kinds[kind]}, got {show_value(value)}", key=key)


def _as_toml(value: Any) -> Any:
    return [_as_toml(item) for item in value] if isinstance(value, tuple | list) else value
