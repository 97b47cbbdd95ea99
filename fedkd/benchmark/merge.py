"""Scenario keys in a bench file: one rule for dotted, quoted and nested keys in all tables."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from fedkd.errors import UserError
from fedkd.plan import CONTINUAL_TABLE, FUSION_TABLE

REPLACE = "!"


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a table as dotted keys to values; ``key!`` keeps its table whole.

    >>> flatten({"data": {"partition.alpha": 1}, "fusion!": {"strategy": "fedmd"}})
    {'data.partition.alpha': 1, 'fusion!': {'strategy': 'fedmd'}}
    """
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and value and not key.endswith(REPLACE):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def set_keys(table: Mapping[str, Any]) -> set[str]:
    """Return the dotted keys that a table sets, whole tables by their own name."""
    return {key.removesuffix(REPLACE) for key in flatten(table)}


def keys_overlap(one: str, other: str) -> bool:
    """Return whether two dotted keys are the same, or one is within the other."""
    one, other = one.removesuffix(REPLACE) + ".", other.removesuffix(REPLACE) + "."
    return one.startswith(other) or other.startswith(one)


def value_at(tables: Any, key: str, missing: Any = None) -> Any:
    """Return what is at a dotted key; a number steps into a list."""
    for part in key.split("."):
        if isinstance(tables, Mapping) and part in tables:
            tables = tables[part]
        elif isinstance(tables, list) and part.isdecimal() and int(part) < len(tables):
            tables = tables[int(part)]
        else:
            return missing
    return tables


def merged(tables: Mapping[str, Any], *steps: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `tables` with the changes of all `steps` applied, one key at a time.

    A number steps into a list (``clients.0.model``). A step into a single value raises `UserError`.
    """
    result = deepcopy(dict(tables))
    for key, value in [pair for changes in steps for pair in flatten(changes).items()]:
        *path, last = key.removesuffix(REPLACE).split(".")
        table: Any = result
        for depth, part in enumerate(path):
            table = _child(table, part, ".".join(path[: depth + 1]))
        if isinstance(table, list):
            _child(table, last, key)
            table[int(last)] = deepcopy(value)
        else:
            table[last] = deepcopy(value)
    return result


def _child(table: Any, part: str, where: str) -> Any:
    if isinstance(table, list):
        if not part.isdecimal() or int(part) >= len(table):
            raise UserError(f"the list has {len(table)} entries, counted from 0", key=where)
        return table[int(part)]
    child = table.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise UserError(f"is a single value in the base scenario, got {child!r}", key=where)
    return child


def forget_hyperparameters(tables: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return scenario tables without hyper-parameters of a strategy or learner that `changes` replace."""
    kept = dict(tables)
    for table in (FUSION_TABLE, CONTINUAL_TABLE):
        present, fields = kept.get(table.name, {}), table.section.model_fields
        chosen = changes.get(f"{table.name}.{table.kind}")
        if chosen not in (None, present.get(table.kind, fields[table.kind].default)):
            kept[table.name] = {key: value for key, value in present.items() if key in fields}
    return kept
