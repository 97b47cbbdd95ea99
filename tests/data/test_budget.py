"""The memory limit of the machine or its container."""

from __future__ import annotations

import pytest

from fedkd.data import memory_budget as budget
from fedkd.errors import UserError


@pytest.mark.parametrize(
    ("told", "expected"), [("4096\n", 4096), ("max\n", None), ("9223372036854771712\n", None)]
)
def test_the_lower_of_machine_and_container_limit_counts(told, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "LIMITS", ())
    machine = budget.machine_memory.__wrapped__()
    (tmp_path / "memory.max").write_text(told)
    monkeypatch.setattr(budget, "LIMITS", (str(tmp_path / "nowhere"), str(tmp_path / "memory.max")))
    assert budget.machine_memory.__wrapped__() == (expected or machine)


def test_more_than_half_the_memory_is_refused_with_both_figures(monkeypatch):
    monkeypatch.setattr(budget, "machine_memory", lambda: 4_000_000_000)
    budget.check_memory_budget(2_000_000_000, "it takes", "data.args")
    with pytest.raises(UserError, match=r"data.args: it takes 2.1 GB; half of this machine's memory is 2.0"):
        budget.check_memory_budget(2_100_000_000, "it takes", "data.args")
