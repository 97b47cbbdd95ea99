"""Parse TOML; every failure of Python's parser becomes an `InvalidToml`."""

import tomllib
from typing import Any

DEEPEST = 64  # maximum nesting of tables and lists; a scenario needs less than ten


class InvalidToml(ValueError):
    """A text is not TOML, or is nested too deeply."""


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what = str(error)  # ends with "(at line 3, column 8)"
        raise InvalidToml(f"{what[:1].lower()}{what[1:]}") from None
    except ValueError:  # raised by int()
        raise InvalidToml("a number with thousands of digits") from None
    except RecursionError:
        tables = None
    if tables is None or _is_deep(tables):
        raise InvalidToml(f"tables or lists more than {DEEPEST} deep")
    return tables


def _is_deep(tables: dict[str, Any]) -> bool:
    level: list[Any] = [tables]
    for _ in range(DEEPEST):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
    return bool(level)
