"""A self-contained HTML page of figures, tables and scenarios."""

import gzip
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from fedkd import __version__
from fedkd.report.page.figure import Figure, number
from fedkd.report.page.neighbours import NeighbourView
from fedkd.report.tables import Cell, Table

MARK = '<meta name="generator" content="fedkd report">'  # recognises a page of fedkd
Item = Figure | Table | NeighbourView


@dataclass(frozen=True)
class Section:
    """A heading with a text, figures and tables; a section without items is left out."""

    title: str
    items: Sequence[Item]
    text: str = ""


@dataclass(frozen=True)
class Page:
    """The content of a page."""

    title: str
    subtitle: str
    sections: Sequence[Section]
    findings: Sequence[str] = ()  # sentences at the top
    facts: Sequence[tuple[str, str]] = ()  # labels and values below them
    notes: Sequence[str] = ()  # warnings, such as for an unfinished run
    sources: Sequence[tuple[str, str]] = ()  # names and texts of its scenario or bench files


def render(page: Page) -> str:
    """Return a page as self-contained HTML that loads nothing."""
    sections = [section for section in page.sections if section.items]
    template = _environment().get_template("page.html")
    return template.render(
        page=page, sections=sections, mark=MARK, version=__version__, payload=script_json(_payload(sections)),
        library=library(), style=_asset("page.css"), script=_asset("page.js"),
    )  # fmt: skip


def _payload(sections: Sequence[Section]) -> dict[str, Any]:
    """Return the data that the page's script draws and saves, by name."""
    figures: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    neighbours = None
    for item in (item for section in sections for item in section.items):
        if isinstance(item, NeighbourView):
            neighbours = {"labels": item.labels, "ofClients": item.of_clients, "rounds": item.rounds}
            continue
        numbers = {"columns": item.columns, "rows": [[*map(_value, row)] for row in item.rows]}
        if isinstance(item, Table):
            tables[item.name] = numbers
            continue
        drawn = {name: getattr(item, name) for name in ("title", "data", "layout", "height")}
        frames = [{"label": label, "data": data} for label, data in item.frames]
        figures[item.name] = {**drawn, "frames": frames, **numbers}
    return {"figures": figures, "tables": tables, "neighbours": neighbours}


def _value(cell: Any) -> Any:
    if isinstance(cell, Cell):
        return cell.text if cell.value is None else number(cell.value)
    return number(cell) if isinstance(cell, float) else cell


def script_json(value: Mapping[str, Any]) -> str:
    """Return a value as JSON that is safe inside a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def library() -> str:
    """Return Plotly's script, as gzip in base64."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    return b64encode(gzip.compress(script.encode(), compresslevel=6, mtime=0)).decode()


@cache
def _asset(name: str) -> str:
    return (files("fedkd.report.page") / "assets" / name).read_text(encoding="utf-8")


@cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.tests["figure"] = lambda item: isinstance(item, Figure)
    environment.tests["table"] = lambda item: isinstance(item, Table)
    environment.tests["cell"] = lambda item: isinstance(item, Cell)
    return environment
