"""The one rule about keys that nothing reads (see `fedkd.plan.readers`).

Such a key says something that does not happen, so it is refused. It counts where somebody wrote it, be it at
its default. Where something written above it, such as ``--set``, made it moot, it is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from fedkd.errors import UserError
from fedkd.explain import show_value
from fedkd.fusion.client_half import ClientHalf
from fedkd.plan.layers import FILE_ALONE, Layers
from fedkd.plan.readers import TABLE, Reader, at
from fedkd.scenario.schema import Scenario


def with_read_keys(
    scenario: Scenario, strategy: ClientHalf | None = None, layers: Layers = FILE_ALONE
) -> Scenario:
    """Return a scenario without keys that something written above them made moot.

    Args:
        scenario: Its names are known.
        strategy: Its strategy, for the rows that ask it; None: all other rows are looked at.
        layers: What was set over the file.

    Raises:
        UserError: A key that nothing reads, beside or above what it depends on.
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


def _moot(scenario: Scenario, strategy: ClientHalf | None) -> Iterator[Reader]:
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
