"""What our benches say of a strategy or a learner: its rows of the tables in docs/."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from reference.markdown import table

DOCS = Path(__file__).resolve().parents[2] / "docs"
STRATEGIES = ("benches.md", "strategies-mnist")
LEARNERS = ("continual.md", "split-mnist-in-three-scenarios")
COLUMNS = ("Δ", "seeds")
"""Beginnings of the titles of columns that are left out."""


def of_strategy(name: str) -> str:
    """Return a strategy's rows of the bench over all strategies; empty if it is not among them."""
    page, heading = STRATEGIES
    titles, rows = _table(page, heading)
    kept = [i for i, title in enumerate(titles) if not title.startswith(COLUMNS)]
    own = [row for row in rows if _named(row[1]) == name]
    shown = table([titles[i] for i in kept], ([row[i].replace("**", "") for i in kept] for row in own))
    return _told(shown, page, heading, "strategies on MNIST")


def of_learner(name: str) -> str:
    """Return a learner's rows of the bench over learners; empty if it is not among them."""
    page, heading = LEARNERS
    titles, rows = _table(page, heading)
    own = [row for row in rows if _named(row[0]) == name]
    return _told(table(titles, own), page, heading, "learners on Split MNIST")


def _told(shown: str, page: str, heading: str, bench: str) -> str:
    return f"In our bench of [{bench}](../{page}#{heading}):\n\n{shown}" if shown else ""


def _named(label: str) -> str:
    return label.partition(",")[0].strip()


@cache
def _table(page: str, heading: str) -> tuple[list[str], list[list[str]]]:
    """Return the titles and rows of the first table below a heading.

    Raises:
        LookupError: There is no such heading, or no table below it.
    """
    lines = iter((DOCS / page).read_text(encoding="utf-8").splitlines())
    if not any(line.startswith("## ") and _anchor(line[3:]) == heading for line in lines):
        raise LookupError(f"docs/{page} has no heading that becomes #{heading}")
    rows = [_cells(line) for line in _first_table(lines)]
    if len(rows) < 3:
        raise LookupError(f"docs/{page} has no table below #{heading}")
    return rows[0], rows[2:]


def _first_table(lines: Iterator[str]) -> Iterator[str]:
    begun = False
    for line in lines:
        if line.startswith("|"):
            begun = True
            yield line
        elif begun or line.startswith("## "):
            return


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _anchor(heading: str) -> str:
    return heading.strip().lower().replace(" ", "-")
