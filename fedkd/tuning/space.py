"""The search space: ranges and choices of scenario keys, from a file or the command line."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Annotated, Any

from pydantic import Field, ValidationError

from fedkd.benchmark import keys_overlap
from fedkd.errors import UserError, refuse_if
from fedkd.plugins import explain_error
from fedkd.scenario import InvalidToml, Section, dotted_key, parse_override, parse_toml

SEARCH = "--search"
FORM = "e.g. training.lr=log:1e-4..1e-1 training.local_epochs=1..5 training.optimizer=adam,sgd"
FIXED = (
    *("name", "seed", "engine", "tracking", "checkpoint_every", "evaluate_every", "evaluate_clients"),
    *("plugins", "plugin_path", "data.validation", "data.test_fraction", "data.test_size"),
)
"""Keys that cannot be searched, such as a run's folder or its test samples."""
MOST = 1e15  # floats hold whole numbers up to here exactly
DIGITS = 4  # significant digits of a drawn number, so that it can be written down


class Range(Section):
    """Numbers from `low` to `high`, both included; whole numbers if both are."""

    low: Annotated[int | float, Field(ge=-MOST, le=MOST)]
    """The least."""
    high: Annotated[int | float, Field(ge=-MOST, le=MOST)]
    """The greatest; with a `step`, a whole number of steps above `low`."""
    log: bool = False
    """Draws the logarithm uniformly."""
    step: int | float | None = None
    """Distance between the numbers, from `low`; absent: 1 for whole numbers, else any number is drawn."""


@dataclass(frozen=True)
class Dimension:
    """One scenario key that is searched, by choices or a range."""

    key: str  # dotted; a final `!` replaces the whole table
    choices: tuple[Any, ...] = ()
    range: Range | None = None

    @property
    def whole(self) -> bool:
        """True if its numbers are integers."""
        return self.range is not None and isinstance(self.range.low, int) and isinstance(self.range.high, int)

    @property
    def tried(self) -> tuple[Any, ...]:
        """Values that a check tries: the ends of a range, or all choices."""
        return self.choices if self.range is None else (self.range.low, self.range.high)

    def rounded(self, value: Any) -> Any:
        """Return a drawn number with few digits, within the range."""
        if self.range is None or self.whole or self.range.step is not None:
            return value
        low, high = float(self.range.low), float(self.range.high)
        return min(max(float(f"{value:.{DIGITS}g}"), low), high)

    def holds(self, value: Any) -> bool:
        """Return whether a value of the base may be drawn."""
        if self.range is None:
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        low, high, step = self.range.low, self.range.high, self.range.step
        if not low <= value <= high:
            return False
        return step is None or isclose((value - low) / step, round((value - low) / step), abs_tol=1e-9)

    def range_words(self) -> str:
        """Return the range in words; empty: it has choices instead."""
        if self.range is None:
            return ""
        found = f"{self.range.low:g} to {self.range.high:g}"
        if self.range.step is not None:
            found += f" in steps of {self.range.step:g}"
        return found + " (log)" * self.range.log


def dimensions(search: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """Return the dimensions of a `[search]` table, in its order."""
    found = list(_within(search, ""))
    told = 'must have at least one key to vary, e.g. "training.lr" = { low = 1e-4, high = 1e-1 }'
    refuse_if(not found, told, "search")
    names = [dimension.key for dimension in found]
    for name in names:
        key = name.removesuffix("!")
        where = dotted_key(("search", *key.split(".")))
        told = "cannot be searched: it does not affect learning, or it decides the samples of the measurement"
        fixed = any(f"{key}.".startswith(f"{fixed}.") for fixed in FIXED)
        refuse_if(fixed, told, where)
        twice = any(other != name and keys_overlap(other, name) for other in names)
        refuse_if(twice, "is searched twice, as a whole and in part", where)
    return tuple(found)


def _within(table: Mapping[str, Any], prefix: str) -> list[Dimension]:
    found: list[Dimension] = []
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and not {"low", "high"} & value.keys():
            found += _within(value, f"{key}.")
        else:
            found.append(dimension_of(key, value))
    return found


def dimension_of(key: str, value: Any) -> Dimension:
    """Return the dimension of ``{ low = …, high = … }``, a list, or a text as ``log:1e-4..1e-1``."""
    where = dotted_key(("search", *key.split(".")))
    if isinstance(value, str):
        return _parsed(key, value)
    if isinstance(value, Mapping):
        try:
            return Dimension(key, range=_checked(Range.model_validate(dict(value)), where))
        except ValidationError as error:
            problems = error.errors(include_url=False)
            # A value that is neither an integer nor a float has two errors: the latter says more.
            first = next((problem for problem in problems if problem["loc"][-1] == "float"), problems[0])
            place = ".".join(map(str, first["loc"][:1]))
            raise UserError(explain_error(first, Range.model_fields), key=f"{where}.{place}") from None
    if isinstance(value, list | tuple):
        given = list(value)
        refuse_if(len(given) < 2, f"must be a list of at least two values, got {given!r}", where)
        refuse_if(len(set(map(repr, given))) < len(given), f"must be different values, got {given!r}", where)
        return Dimension(key, tuple(given))
    told = f"must be {{ low = …, high = … }} or a list of values, got {value!r}; one value belongs into [set]"
    raise UserError(told, key=where)


def _checked(found: Range, where: str) -> Range:
    low, high, step = found.low, found.high, found.step
    is_bool = isinstance(low, bool) or isinstance(high, bool)
    refuse_if(is_bool, "must have numbers as ends; write true and false as a list", where)
    refuse_if(not low < high, f"low must be less than high, got {low!r} and {high!r}", where)
    refuse_if(found.log and low <= 0, f"low must be > 0 with log, got {low!r}", where)
    told = "must be left out with log" if found.log else f"must be > 0, got {step!r}"
    refuse_if(step is not None and (step <= 0 or found.log), told, f"{where}.step")
    steps = 1.0 if step is None else (high - low) / step
    told = f"high must be low plus a whole number of steps, got {low!r}, {high!r} and step {step!r}"
    refuse_if(not isclose(steps, round(steps), abs_tol=1e-9), told, where)
    return found


def parse_search(texts: Sequence[str]) -> dict[str, Any]:
    """Return texts of ``--search`` as a `[search]` table."""
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, said = text.partition("=")
        if not equals or not key.strip() or not said.strip():
            raise UserError(f"{text!r} is not of the form key=what, {FORM}", key=SEARCH)
        found[key.strip()] = said.strip()
    return found


RANGE = re.compile(r"(?P<log>log:)?(?P<low>[^,]+?)\.\.(?P<high>[^,]+)")


def _parsed(key: str, text: str) -> Dimension:
    where = f"{SEARCH} {key}"
    if (match := RANGE.fullmatch(text)) is not None:
        low, high = (_number(match[end], where) for end in ("low", "high"))
        return dimension_of(key, {"low": low, "high": high, "log": match["log"] is not None})
    try:
        values = parse_toml(f"value = {text}")["value"] if text[0] == "[" else None
    except InvalidToml:
        values = None
    if values is None:
        values = [parse_override(f"{key}={word.strip()}")[1] for word in text.split(",") if word.strip()]
    if not isinstance(values, list) or len(values) < 2:
        raise UserError(f"must be a range or a list of values, got {text!r}; {FORM}", key=where)
    return dimension_of(key, values)


def _number(text: str, where: str) -> int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise UserError(f"must be a number, got {text!r}; {FORM}", key=where)
