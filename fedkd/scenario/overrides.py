"""``--set a.b=value``: change single values of a scenario, with TOML's types."""

import datetime
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from fedkd.errors import UserError
from fedkd.scenario.toml import InvalidToml, parse_toml

LONGEST = 100  # characters of a value in an error


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Split ``a.b=value`` into its key and value (TOML or a word)."""
    try:
        text.encode()
    except UnicodeEncodeError:  # invalid UTF-8 of a command line arrives as surrogates
        raise UserError(f"{text!r} is not UTF-8 text", key="--set") from None
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise UserError(f"{_short(text)} is not of the form key=value, e.g. fusion.beta=2.0", key="--set")
    return path, _read_value(value.strip(), key.strip())


def apply_overrides(mapping: dict[str, Any], overrides: Sequence[str]) -> set[str]:
    """Apply overrides in place; return the keys set."""
    written = set()
    for text in overrides:
        path, value = parse_override(text)
        _set(mapping, path, value)
        written.add(".".join(path))
    return written


def apply_values(mapping: dict[str, Any], values: Mapping[str, Any]) -> set[str]:
    """Apply values by dotted key in place; return the keys set."""
    written = set()
    for key, value in values.items():
        path = tuple(key.split("."))
        if isinstance(value, Mapping):
            written |= apply_values(mapping, {f"{key}.{inner}": own for inner, own in value.items()})
            continue
        try:
            _set(mapping, path, value)
        except UserError as error:
            raise UserError(error.message, key=key) from None
        written.add(key)
    return written


def _read_value(text: str, key: str) -> Any:
    if not text:
        raise UserError(f'{key} has no value; an empty string is {key}=""', key="--set")
    try:
        parsed = parse_toml(f"value = {text}")
    except InvalidToml as error:
        if text[0] in "\"'[{":
            raise UserError(f"{key}: {_short(text)} is not valid TOML", key="--set") from error
        return text
    value = parsed.pop("value")
    # A second line would set a second key. No scenario value is a date, so a date is a word.
    if parsed or isinstance(value, datetime.date | datetime.time):
        return text
    return value


def _short(text: str) -> str:
    return repr(text) if len(text) <= LONGEST else f"{text[:LONGEST]!r}…"


def _set(mapping: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    table: Any = mapping
    for depth, (part, following) in enumerate(itertools.pairwise(path), start=1):
        where = ".".join(path[:depth])
        table = _step(table, part, where, default=[] if following.isdecimal() else {})
        if not isinstance(table, dict | list):
            raise UserError(f"{where} is a single value; {'.'.join(path)} cannot be set", key="--set")
    where = ".".join(path)
    if isinstance(table, list):
        index = _index(table, path[-1], where)
        table[index : index + 1] = [value]
    else:
        table[path[-1]] = value


def _step(table: dict[str, Any] | list[Any], part: str, where: str, default: Any) -> Any:
    if isinstance(table, dict):
        return table.setdefault(part, default)
    index = _index(table, part, where)
    if index == len(table):
        table.append(default)
    return table[index]


def _index(entries: list[Any], part: str, where: str) -> int:
    parent = where.rpartition(".")[0]
    if not part.isdecimal():
        raise UserError(f"{parent} is a list: name an entry by its number, e.g. {parent}.0", key="--set")
    if int(part) > len(entries):
        raise UserError(f"{where}: {parent} has {len(entries)} entries, counted from 0", key="--set")
    return int(part)
