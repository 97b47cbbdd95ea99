"""When an accuracy was reached on the simulated clock, and how that is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedkd.report.run_summary import times_to_accuracy
from fedkd.tracking.events import RunReport
from fedkd.tracking.wording import closing_lines

pytestmark = pytest.mark.usefixtures("no_report")


def row(
    round: int, metric: str, value: float | None, split: str = "global", client: int | None = None
) -> Any:
    return {"round": round, "client": client, "task": None, "split": split, "metric": metric, "value": value}


ROWS = [
    row(1, "virtual_seconds", 2.5, "train"),
    row(1, "accuracy", 0.4),
    row(1, "accuracy", 0.9, client=3),
    row(2, "virtual_seconds", 4.0, "train"),  # not evaluated
    row(3, "virtual_seconds", 7.0, "train"),
    row(3, "accuracy", 0.7),
    row(3, "accuracy", None, "local"),
    row(4, "virtual_seconds", 9.0, "train"),
    row(4, "accuracy", 0.5),
]


def test_the_target_time_is_the_end_of_the_first_sufficient_round():
    found = times_to_accuracy(ROWS, [40, 41, 70, 80])
    assert found == {
        "seconds_to_40_local": None,
        "seconds_to_41_local": None,
        "seconds_to_70_local": None,
        "seconds_to_80_local": None,
        "seconds_to_40_global": 2.5,
        "seconds_to_41_global": 7.0,
        "seconds_to_70_global": 7.0,
        "seconds_to_80_global": None,
    }


def test_closing_lines_state_the_time_to_the_target():
    final = {"virtual_seconds": 75.0, "seconds_to_40_global": 2.5, "seconds_to_80_global": None}
    lines = closing_lines(RunReport(Path("run"), {"final": final}))
    assert "simulated time   1 min 15 s" in lines
    assert "global reached   40 %: 2.5 s, 80 %: –" in lines
    assert not any(line.startswith("local reached") for line in lines)
    assert not any("simulated" in line for line in closing_lines(RunReport(Path("run"), {"final": {}})))
