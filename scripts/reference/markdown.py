"""Markdown that is made of docstrings and values."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

from fedkd.scenario.dump import toml_value

CODE = re.compile(r"(`[^`]*`)")
MADE = "<!-- made of the code by scripts/reference; not to be edited -->\n"
"""Begins every page that is made."""


def page(title: str, *parts: str) -> str:
    """Return a page of a title and parts, one paragraph or table each."""
    return "\n\n".join([f"{MADE}\n# {title}", *(part for part in parts if part)]) + "\n"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; empty if it has no rows."""
    lines = [f"| {' | '.join(map(cell, row))} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}", *lines])


def cell(text: str) -> str:
    """Return text as a table's cell takes it: one line, bars escaped."""
    return " ".join(text.split()).replace("|", r"\|")


def code(text: str) -> str:
    """Return text as code."""
    return f"`{text}`"


def default(value: Any) -> str:
    """Return a default as a scenario spells it."""
    if value is None:
        return "absent"
    return code(toml_value(value)) if value != {} else "`{}`"


def prose(text: str) -> str:
    """Return a description, with what Markdown would take for HTML or emphasis spelled out."""
    return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    parts = CODE.split(text)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def docstring(described: Any) -> str:
    """Return a docstring as Markdown: blocks fenced; sections of arguments and a first "Return" left out."""
    lines = (inspect.getdoc(described) or "").splitlines()
    found: list[str] = []
    block: list[str] | None = None
    section = False
    for line in lines:
        if re.fullmatch(r"(Args|Raises|Returns|Attributes|Members|Yields):", line):
            section = True
        elif section and line and not line.startswith(" "):
            section = False
        if section:
            continue
        if block is not None and line and not line.startswith(" "):
            found += ["```text", *_dedented(block), "```", ""]
            block = None
        if block is not None:
            block.append(line)
        elif line.rstrip() == "::" or line.rstrip().endswith("::"):
            told = line.rstrip().removesuffix("::").rstrip()
            found += [told + ":", ""] if told else [""]
            block = []
        else:
            found.append(_escaped(re.sub(r"``([^`]+)``", r"`\1`", line)))
    if block is not None:
        found += ["```text", *_dedented(block), "```"]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(found)).strip().removeprefix("Return ")
    return text[:1].upper() + text[1:]


def _dedented(lines: Sequence[str]) -> list[str]:
    text = inspect.cleandoc("\n" + "\n".join(lines))
    return text.strip("\n").splitlines()
