"""The table of strategies and learners in the docs is what is refused, and what is not."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "scripts"))

import combinations  # noqa: E402, the folder is on the path only now

PAGE = (REPOSITORY / "docs" / "federated-continual.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("<!-- scripts/combinations.py -->")[2].partition("<!-- end -->")[0]
REASONS = dict(re.findall(r"^- (\[\d+\]) (.*)$", TABLE, re.MULTILINE))


def told(strategy: str) -> list[str]:
    """Return what the page says of a strategy, learner by learner."""
    row = next(line for line in TABLE.splitlines() if line.startswith(f"| `{strategy}` |"))
    marks = [mark.strip() for mark in row.split("|")[2:-1]]
    return [REASONS.get(mark, mark) for mark in marks]


# Those that exchange predictions are refused nothing: one of them stands for all.
@pytest.mark.parametrize("strategy", ["knfu", "feddf", "flwr:FedAvg"])
def test_the_table_of_combinations_matches_the_checks(strategy, tmp_path):
    cells = [(strategy, learner, "poisson") for learner in combinations.LEARNERS]
    found = [combinations.outcome(cell, {"kind": "inline"}, tmp_path, only_check=True) for cell in cells]
    assert found == told(strategy)


@pytest.mark.slow
def test_every_combination_runs_on_ray_or_is_refused(capsys):
    assert combinations.main([]) == 0
    assert capsys.readouterr().out.strip() == TABLE.strip()
