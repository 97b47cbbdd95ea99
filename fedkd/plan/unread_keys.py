"""The rule about keys that nothing reads (see `fedkd.plan.readers`).

Such a key says something that does not happen, so it is refused where somebody wrote it, even at its default.
It is left out where a higher layer, such as ``--set``, made it moot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from fedkd.errors import UserError
from fedkd.explain import show_value
from fedkd.fusion.strategy import FusionStrategy
from fedkd.plan.readers import TABLE, Reader, at
from fedkd.scenario.schema import Scenario


@dataclass(frozen=True)
class OverrideLayers:
    """What was set over a scenario file, as dotted keys.

    Attributes:
        over: By ``--set``, by arguments or for all cells of a bench, the lowest layer first.
        axes: For one cell of a bench, what each axis sets. None: it is no cell.
        varied: What each axis of the bench sets at some of its levels.
    """

    over: Sequence[Collection[str]] = ()
    axes: Sequence[Collection[str]] | None = None
    varied: Sequence[Collection[str]] = ()

    def of(self, key: str) -> int:
        """Return the highest layer that sets a key; 0: the file does."""
        return _highest(key, [*self.over, *(self.axes or ())])

    def of_any(self, keys: Collection[str]) -> int:
        """Return the highest layer that may set one of some keys; 0: only the file does."""
        return max(_highest(key, [*self.over, *self.varied]) for key in keys)

    def is_axis(self, layer: int) -> bool:
        """Return whether a layer is an axis."""
        return layer > len(self.over)


def _highest(key: str, layers: Sequence[Collection[str]]) -> int:
    found = [n for n, keys in enumerate(layers, start=1) if any(_touch(key, own) for own in keys)]
    return max(found, default=0)


NO_OVERRIDES = OverrideLayers()


def _touch(one: str, other: str) -> bool:
    """Return whether two dotted keys are one, or one is a table around the other."""
    return f"{one}.".startswith(f"{other}.") or other.startswith(f"{one}.")


def without_moot_keys(
    scenario: Scenario, strategy: FusionStrategy | None = None, layers: OverrideLayers = NO_OVERRIDES
) -> Scenario:
    """Return a scenario without keys that a higher layer made moot.

    Without a strategy only rows that do not ask it apply. Other keys that nothing reads are a `UserError`.
    """
    for row in _moot(scenario, strategy):
        own, above = layers.of(row.key), layers.of_any(row.by)
        crosses = own != above and layers.is_axis(own) and layers.is_axis(above)
        if crosses or (layers.axes is not None and row.key.startswith("engine.")):
            continue  # another cell of the bench reads the key, or the bench itself
        if above > own:
            scenario = _left_out(scenario, row.key.split("."))
            continue
        raise UserError(
            f"must be left out: it is for {row.only}, and {_shown(scenario, row.by[0])}", key=row.key
        )
    return scenario


def _moot(scenario: Scenario, strategy: FusionStrategy | None) -> Iterator[Reader]:
    for row in TABLE:
        asked = row.asks_strategy == (strategy is not None) and is_set(scenario, row.key)
        if asked and not row.reads(scenario, strategy):
            yield row


def is_set(scenario: Scenario, key: str) -> bool:
    """Return whether somebody wrote a dotted key, other than to say that something usually off is off."""
    table: Any = None
    value: Any = scenario
    for part in key.split("."):
        table = value
        if not isinstance(table, BaseModel) or part not in table.model_fields_set:
            return False
        value = getattr(table, part)
    return bool(value) or bool(type(table).model_fields[part].default)


def _left_out(section: Any, path: Sequence[str]) -> Any:
    """Return a table with a key of it, or of a table in it, at its default, as if nobody had written it."""
    name, *rest = path
    field = type(section).model_fields[name]
    value = _left_out(getattr(section, name), rest) if rest else field.get_default(call_default_factory=True)
    changed = section.model_copy(update={name: value})
    if not rest:
        changed.model_fields_set.discard(name)
    return changed


def _shown(scenario: Scenario, key: str) -> str:
    """Return what a key says, to go on after "and": `data.partition.scheme is 'iid'`."""
    if key == "clients":
        return f"clients are of {', '.join(sorted({group.model for group in scenario.clients}))}"
    value = at(scenario, key)
    return f"{key} is {'set' if isinstance(value, BaseModel) else show_value(value)}"
