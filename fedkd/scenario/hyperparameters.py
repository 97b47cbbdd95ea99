"""The fusion strategy's own keys of ``[fusion]``: checked against the strategy, its defaults filled in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedkd.errors import UserError, did_you_mean
from fedkd.explain import show_value
from fedkd.scenario.schema import Fusion


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

    try:
        known = [parameter.name for parameter in strategy_hyperparameters(fusion.strategy, search)]
        _check_names(fusion.strategy, given, known)
        strategy = make_strategy(fusion.strategy, given, search)
    except UserError as error:
        raise error.at(key="fusion.strategy") from None
    values = {name: getattr(strategy, name) for name in known}
    for name, value in given.items():
        _check_like(value, values[name], key=f"fusion.{name}")
    return {name: _as_toml(value) for name, value in values.items() if value is not None}


def _resolve_flower(strategy: str, given: Mapping[str, Any]) -> dict[str, Any]:
    from fedkd.federation.flower_strategies import flower_hyperparameters, make_flower_strategy

    defaults = flower_hyperparameters(strategy)
    _check_names(strategy, given, defaults)
    for name, value in given.items():
        _check_like(value, defaults[name], key=f"fusion.{name}")
    make_flower_strategy(strategy, given)
    merged = {**defaults, **given}
    # What has no default was given: Flower's strategy was built without complaint.
    return {name: _as_toml(value) for name, value in merged.items() if value is not None}


def _check_names(strategy: str, given: Iterable[str], known: Iterable[str]) -> None:
    allowed = [*known, *Fusion.model_fields]
    for name in given:
        if name not in allowed:
            raise UserError(
                f"unknown key for strategy '{strategy}'; {did_you_mean(name, allowed)}", key=f"fusion.{name}"
            )


def _check_like(value: Any, model: Any, *, key: str) -> None:
    """Check that `value` has the type of `model`: true is no number, and neither is "3"."""
    kinds = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    kind = type(model)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if kind in kinds and not fits:
        raise UserError(f"must be {kinds[kind]}, got {show_value(value)}", key=key)


def _as_toml(value: Any) -> Any:
    return [_as_toml(item) for item in value] if isinstance(value, tuple | list) else value
