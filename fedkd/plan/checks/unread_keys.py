"""Handling of keys without effect (see `fedkd.plan.checks.key_rules`).

A key without effect is an error where a person wrote it, even at its default. It is dropped if a higher
layer, such as ``--set``, removed its effect.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from fedkd.errors import UserError
from fedkd.fusion import FusionStrategy
from fedkd.plan.checks.key_rules import TABLE, at
from fedkd.plugins import show_value
from fedkd.scenario import Scenario


@dataclass(frozen=True)
class OverrideLayers:
    """Keys set over a file, lowest layer first, and the keys of a bench."""

    over: Sequence[Collection[str]] = ()
    axes: Sequence[Collection[str]] | None = None
    varied: Sequence[Collection[str]] = ()


NO_OVERRIDES = OverrideLayers()


def _highest(keys: Collection[str], layers: Sequence[Collection[str]]) -> int:
    """Return the highest layer that sets one of the keys (0: none)."""
    return max(
        (
            number
            for number, layer in enumerate(layers, start=1)
            if any(
                f"{one}.".startswith(f"{own}.") or own.startswith(f"{one}.") for one in keys for own in layer
            )
        ),
        default=0,
    )


def without_moot_keys(
    scenario: Scenario, strategy: FusionStrategy | None = None, layers: OverrideLayers = NO_OVERRIDES
) -> Scenario:
    """Return a scenario without ineffective keys.

    With a `strategy` only the rows that depend on it are checked, otherwise only the other rows.
    """
    given, fixed = scenario, len(layers.over)
    for row in TABLE:
        asked = row.asks_strategy == (strategy is not None) and is_set(given, row.key)
        if not asked or row.reads(given, strategy):
            continue
        own = _highest([row.key], [*layers.over, *(layers.axes or ())])
        above = _highest(row.by, [*layers.over, *layers.varied])
        crosses = own != above and own > fixed and above > fixed
        if crosses or (layers.axes is not None and row.key.startswith("engine.")):
            continue  # another cell of the bench, or the bench itself, uses the key
        if above <= own:
            shown = _shown(scenario, row.by[0])
            raise UserError(f"must be left out: it applies only to {row.only}, and {shown}", key=row.key)
        scenario = _left_out(scenario, row.key.split("."))
    return scenario


def is_set(scenario: Scenario, key: str) -> bool:
    """Return whether a key was set, to a value other than "off"."""
    table: Any = None
    value: Any = scenario
    for part in key.split("."):
        table = value
        if not isinstance(table, BaseModel) or part not in table.model_fields_set:
            return False
        value = getattr(table, part)
    return bool(value) or bool(type(table).model_fields[part].default)


def _left_out(section: Any, path: Sequence[str]) -> Any:
    """Return a table with a key unset, which may be in a nested table."""
    name, *rest = path
    field = type(section).model_fields[name]
    value = _left_out(getattr(section, name), rest) if rest else field.get_default(call_default_factory=True)
    changed = section.model_copy(update={name: value})
    if not rest:
        changed.model_fields_set.discard(name)
    return changed


def _shown(scenario: Scenario, key: str) -> str:
    """Return a key's value in words: `data.partition.scheme is 'iid'`."""
    if key == "clients":
        return f"clients have {', '.join(sorted({group.model for group in scenario.clients}))}"
    value = at(scenario, key)
    return f"{key} is {'set' if isinstance(value, BaseModel) else show_value(value)}"
