"""The page on searches shows one that can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedkd.tuning.objective import OBJECTIVES
from fedkd.tuning.runner import plan_tune

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tuning.md").read_text(encoding="utf-8")


def test_the_example_file_is_a_valid_search(tmp_path):
    pytest.importorskip("optuna")
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "tune.toml").write_text(block)
    plan = plan_tune(tmp_path / "tune.toml", out=tmp_path / "out")
    assert plan.search.spec.name == "knfu-digits" and len(plan.search.space) == 3


def test_every_metric_is_documented():
    for name in OBJECTIVES:
        assert name in PAGE or "…_" + name.rpartition("accuracy_")[2] in PAGE, name
