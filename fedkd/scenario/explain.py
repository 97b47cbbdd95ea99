"""Words validation errors of scenarios, with the key and the keys that are allowed there."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from fedkd.errors import UserError, did_you_mean
from fedkd.plugins.validation_errors import explain_error
from fedkd.scenario.asked import asked_for
from fedkd.scenario.schema import Scenario


def scenario_error(error: ValidationError, *, file: str | None = None) -> UserError:
    """Return the first problem of a `ValidationError` as one line, with the number of the others."""
    problems = error.errors(include_url=False)
    # A misspelt key also leaves its default in place, which may cause follow-up errors: it goes first.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = first["loc"]
    message = explain_error(first, known_keys(location[:-1]))
    if first["type"] == "extra_forbidden":
        message = unknown_key(str(location[-1]), known_keys(location[:-1]))
    if first["type"] == "string_pattern_mismatch" and location == ("name",):
        message = (
            "must be letters, digits, '.', '_' and '-', starting with a letter or digit"
            f", got {first['input']!r}"
        )
    if len(problems) > 1:
        message += f" (and {len(problems) - 1} more)"
    return UserError(message, key=dotted(location), file=file)


def unknown_key(name: str, known: Iterable[str], of: str = "") -> str:
    """Return the message about an unknown key `of` something, e.g. ``" for strategy 'knfu'"``."""
    told = asked_for(name)
    if told is None and (elsewhere := _places().get(name)):
        told = f"did you mean {' or '.join(elsewhere[:MOST_PLACES])}?"
    return f"unknown key{of}; {told or did_you_mean(name, known)}"


MOST_PLACES = 3  # tables that an error names for a key


@cache
def _places() -> Mapping[str, list[str]]:
    """Return every key of a scenario by its last name, dotted."""
    found: dict[str, list[str]] = {}

    def walk(model: type[BaseModel], path: tuple[str, ...]) -> None:
        for name, field in model.model_fields.items():
            found.setdefault(name, []).append(".".join((*path, name)))
            section = section_of(field.annotation)
            if section is not None and get_origin(field.annotation) is not list and name != "tracking":
                walk(section, (*path, name))

    walk(Scenario, ())
    return found


def known_keys(location: Iterable[Any]) -> Collection[str]:
    """Return the keys allowed in the table at `location`, e.g. ``("data", "partition")``."""
    model: type[BaseModel] | None = Scenario
    for part in location:
        if isinstance(part, int):  # an entry of a list has the model of the list's annotation
            continue
        field = model.model_fields.get(part) if model else None
        model = section_of(field.annotation) if field else None
    return model.model_fields.keys() if model else ()


def dotted(location: Iterable[Any]) -> str:
    """Return a location as ``--set`` spells it, quoting parts that TOML would quote."""
    return ".".join(
        text if re.fullmatch(r"[A-Za-z0-9_-]+", text := str(part)) else json.dumps(text, ensure_ascii=False)
        for part in location
    )


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section class inside ``Section``, ``Section | None`` or ``list[Section]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)
