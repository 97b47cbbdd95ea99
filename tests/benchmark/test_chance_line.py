"""A bench names the cells with clients at chance level."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from fedkd.benchmark.results import FinishedCell, chance_line
from fedkd.benchmark.worker import CellOutcome


def cell(label: str, *clients: int) -> FinishedCell:
    summary = {"at_chance": [{"client": client, "task": 0} for client in clients]}
    return FinishedCell(SimpleNamespace(label=label), Path(label), CellOutcome("done"), summary)  # type: ignore[arg-type]


def test_up_to_three_cells_are_named_and_the_rest_counted():
    assert chance_line([cell("a"), cell("b")]) is None
    line = chance_line([cell("a"), cell("b", 4, 4), cell("c", 1, 2, 3)])
    assert line is not None and line.startswith("warning: in 2 of 3 cells ")
    assert "training samples: b (1 client), c (3 clients); see" in line
    line = chance_line([cell(name, 0) for name in "abcde"])
    assert line is not None and "c (1 client) and 2 more; see" in line


def test_summaries_of_earlier_releases_give_no_warning():
    old = FinishedCell(SimpleNamespace(label="a"), Path("a"), CellOutcome("done"), {"final": {}})  # type: ignore[arg-type]
    assert chance_line([old]) is None
