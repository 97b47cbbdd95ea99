"""`scripts/bench/gpu.py` tries all its parts on the CPU."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "gpu.py"


def test_a_dry_run_has_all_rows():
    done = subprocess.run([sys.executable, SCRIPT, "--dry-run"], capture_output=True, text=True, check=True)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    steps = {tuple(row[:2]) for row in rows if len(row) == 4}
    rounds = [row for row in rows if len(row) == 5 and row[1] in ("loop", "vectorised")]
    assert {(model, "4 together") for model in ("mlp", "lenet", "resnet8")} < steps
    assert [row[1] for row in rounds] == ["loop", "vectorised"] * 2
    assert all(re.fullmatch(r"\d+\.\d{3}", row[2]) for row in rounds)
