"""Arrays of several owners in one table, each with a prefix: ``memory/clients``."""

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


def add_prefix(prefix: str, table: Mapping[str, Value]) -> dict[str, Value]:
    """Return the table with `prefix` before every name."""
    return {prefix + name: value for name, value in table.items()}


def strip_prefix(prefix: str, table: Mapping[str, Value]) -> dict[str, Value]:
    """Return the entries whose name begins with `prefix`, without the prefix."""
    return {name.removeprefix(prefix): value for name, value in table.items() if name.startswith(prefix)}


def group_by_number(table: Mapping[str, Value]) -> dict[int, dict[str, Value]]:
    """Group entries by the leading number of their names, ascending: ``3/round`` is in 3."""
    found: dict[int, dict[str, Value]] = {}
    for name, value in table.items():
        number, _, rest = name.partition("/")
        found.setdefault(int(number), {})[rest] = value
    return dict(sorted(found.items()))
