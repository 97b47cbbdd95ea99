from __future__ import annotations

import io

import pytest
from rich.console import Console

from fedkd.benchmark.cells import make_cells
from fedkd.benchmark.estimate import CellPace
from fedkd.benchmark.progress import LiveProgress, PlainProgress
from fedkd.benchmark.schema import load_bench
from fedkd.benchmark.worker import CellOutcome


@pytest.fixture
def cells(write, tables):
    return make_cells(load_bench(write(tables)))


def test_the_time_estimate_prefers_similar_cells(cells):
    local, knfu, *later = cells
    pace = CellPace(compared=("fusion.strategy",))
    assert pace.of_all(later) is None
    pace.add(local, 2.0)
    assert pace.of_all(later) == 4.0
    pace.add(knfu, 10.0)
    assert [pace.of(cell) for cell in later] == [2.0, 10.0]


def test_progress_is_printed_as_plain_lines(cells):
    stream = io.StringIO()
    progress = PlainProgress(stream, cells[1:], 1, ("fusion.strategy",))
    progress.slots(2)
    progress.started(cells[1])
    progress.started(cells[2])
    progress.finished(cells[1], CellOutcome("done", 4.0))
    progress.finished(cells[2], CellOutcome("failed", 1.0, "client 2, round 1: broke"))
    progress.started(cells[3])
    progress.finished(cells[3], CellOutcome("done", 4.0))
    first, second, third = stream.getvalue().splitlines()
    assert first == "done    strategy=knfu seed=1  4.0 s  (2/4 done, 1 running, 4 s left)"
    assert second.startswith("failed  strategy=local seed=2: client 2, round 1: broke  (2/4 done, 1 failed")
    assert third.endswith("(3/4 done, 1 failed)")


def test_progress_is_shown_as_a_live_table(cells):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    progress = LiveProgress(console, cells, 0, ("fusion.strategy",))
    progress.slots(1)
    progress.started(cells[0])
    progress.finished(cells[0], CellOutcome("failed", 1.0, "client 2, round 1: broke"))
    progress.started(cells[1])
    progress.closed()
    shown = console.file.getvalue()
    assert "failed  strategy=local seed=1: client 2, round 1: broke" in shown
    assert "0/4 done, 1 failed, 1 running" in shown and "strategy=knfu seed=1" in shown
