"""Every shipped bench says what it shows, and could run."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedkd.benchmark.bench import bench, plan_bench
from fedkd.cli import main

FOLDER = Path(__file__).resolve().parent.parent.parent / "scenarios" / "bench"
PATHS = sorted(FOLDER.glob("*.toml"))


def test_there_are_benches():
    assert "quickstart" in {path.stem for path in PATHS}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_is_described_and_named_like_its_file(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line for line in lines if line.startswith("# "))
    assert lines[0].startswith("# ") and "on 2 cores" in comment
    plan = plan_bench(path)
    assert plan.bench.spec.name == path.stem
    assert plan.baseline and len(plan.bench.seeds) > 1


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_dry_run(path, tmp_path, capsys, request, monkeypatch):
    if any(cell.scenario.data.dataset != "digits" for cell in plan_bench(path).cells):
        monkeypatch.setenv("FEDKD_DATA", str(request.getfixturevalue("data_root")))
    assert main(["bench", str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert "time   about" in capsys.readouterr().out


def test_quickstart_shortened(tmp_path):
    result = bench(
        FOLDER / "quickstart.toml", out=tmp_path, overrides=["rounds=1", "seeds=1", "parallel=false"]
    )
    assert not result.failed and len(result.cells) == 9
    assert (tmp_path / "figures" / "heatmap-accuracy_global.svg").exists()
