"""Every key of scenario and bench files: its type with its limits, its default, and what it is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from fedkd.benchmark.schema import COMPARED_METRICS, BenchFile
from fedkd.plugins.schema import type_text
from fedkd.report.metrics import CONTINUAL_METRICS
from fedkd.scenario.schema import Scenario
from reference.markdown import code, default, page, prose, table

ELSEWHERE = {
    "fusion": "Further keys are the strategy's own: [strategies](strategies.md).",
    "continual": "Further keys are the learner's own: [learners](learners.md).",
    "data": "Arguments of every data set: [data sets](datasets.md).",
    "data.partition": "What each scheme deals: [partitions](partitions.md).",
    "clients": "A list of tables, `[[clients]]`. Arguments of every model: [models](models.md).",
}
"""What is told below the table of a section."""


def scenario_page() -> str:
    """Return the page of scenario files."""
    return page(
        "Scenario files",
        "A scenario is one TOML file. Every key has a default; a key that does not exist is an error that"
        " names the nearest one. `fedkd check SCENARIO.toml` says what a file would do, `fedkd check"
        " --schema` prints the JSON schema for editors, and `--set key=value` changes single keys of a run."
        " *Absent* is a key that is left out.",
        *sections(Scenario),
    )


def bench_page() -> str:
    """Return the page of bench files."""
    metrics = ", ".join(map(code, (*COMPARED_METRICS, *CONTINUAL_METRICS)))
    return page(
        "Bench files",
        "A bench is one TOML file: a base scenario, and what is compared. `fedkd check --schema bench`"
        " prints its JSON schema; `fedkd bench FILE --dry-run` lists its cells.",
        *sections(BenchFile),
        f"## Metrics\n\nWhat `metrics` may name; strategies and learners may record more. {metrics}.",
    )


def sections(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield the tables of a file, one a section, parents first."""
    title = code(f"[{path}]") if path else "At the top"
    yield f"## {title}"
    yield _told(model)
    yield table(("key", "type and limits", "default", "what it is"), _rows(model, path))
    yield ELSEWHERE.get(path, "")
    for name, inner in _inner(model):
        yield from sections(inner, f"{path}.{name}" if path else name)


def keys(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield every key of a file, dotted, tables left out."""
    inner = dict(_inner(model))
    for name in model.model_fields:
        dotted = f"{path}.{name}" if path else name
        if name in inner:
            yield from keys(inner[name], dotted)
        else:
            yield dotted


def anchor(path: str) -> str:
    """Return the anchor of a section, as the site makes it of its heading."""
    return path.replace(".", "")


def _told(model: type[BaseModel]) -> str:
    text = inspect.getdoc(model) or ""
    return "\n\n".join(prose(part) for part in text.split("\n\n"))


def _rows(model: type[BaseModel], path: str) -> Iterator[list[str]]:
    hints = get_type_hints(model, include_extras=True)
    inner = dict(_inner(model))
    for name, field in model.model_fields.items():
        if name in inner:
            where = f"{path}.{name}" if path else name
            optional = field.get_default(call_default_factory=True) is None
            told = f"{prose(field.description or '')} [below](#{anchor(where)})"
            yield [code(name), "table", "absent" if optional else "", told]
            continue
        value = field.get_default(call_default_factory=True)
        limits = f", as in `{_pattern(field.metadata)}`" if _pattern(field.metadata) else ""
        yield [code(name), type_text(hints[name]) + limits, default(value), prose(field.description or "")]


def _pattern(metadata: list[Any]) -> str:
    return next((found for entry in metadata if (found := getattr(entry, "pattern", None))), "")


def _inner(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the keys that hold a table, or a list of tables, with the model of it."""
    for name, hint in get_type_hints(model, include_extras=False).items():
        if name in model.model_fields and (found := _model_in(hint)) is not None:
            yield name, found


def _model_in(hint: Any) -> type[BaseModel] | None:
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return hint
    if get_origin(hint) in (Union, UnionType, Annotated, list):
        return next((found for part in get_args(hint) if (found := _model_in(part))), None)
    return None
