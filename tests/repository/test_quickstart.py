"""The quickstart as a user runs it: in full, on Ray, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedkd.plan.load import load_scenario
from fedkd.scenario.load import read_toml
from fedkd.tracking.run_folder import SCENARIO_FILE

pytestmark = pytest.mark.alone

REPOSITORY = Path(__file__).resolve().parents[2]
QUICKSTART_SCENARIO = REPOSITORY / "scenarios" / "quickstart.toml"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("quickstart")
    done = subprocess.run(
        [sys.executable, "-m", "fedkd", "run", str(QUICKSTART_SCENARIO), "--out", "out"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    return done, folder / "out"


def test_the_quickstart_runs_from_end_to_end(quickstart):
    done, out = quickstart
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    rounds = [line for line in lines if line.startswith("round ")]
    assert len(rounds) == read_toml(QUICKSTART_SCENARIO)["rounds"]
    assert f"results          {out}" in lines
    assert lines[-1].startswith("time ")


def test_the_quickstart_learns_far_beyond_chance(quickstart):
    _, out = quickstart
    final = json.loads((out / "summary.json").read_text())["final"]
    # 91 % and 84 % when it was shipped; chance is 10 %, and a client that only knew its commonest class would
    # reach a third or so of its own test split.
    assert final["accuracy_local"]["mean"] > 0.75
    assert final["accuracy_global"]["mean"] > 0.45


def test_the_quickstart_leaves_a_complete_run_folder(quickstart):
    _, out = quickstart
    rounds = load_scenario(out / SCENARIO_FILE).rounds
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {row["client"] for row in rows} == {None, *range(10)}
    assert {row["round"] for row in rows} == set(range(1, rounds + 1))
    assert (out / "timings.jsonl").stat().st_size > 0
    assert any((out / "checkpoints").iterdir())
    assert not (out / "error.txt").exists()
