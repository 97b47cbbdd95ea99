"""fedkd without the packages of its extras: a run and a bench end well, and name what they leave out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from fedkd.cli.doctor import EXTRAS
from fedkd.cli.main import main

REPOSITORY = Path(__file__).resolve().parents[2]
INSTALL = "in a clone of fedkd: pip install '.[report]'\n"
WITHOUT = """
import json, sys

PACKAGES = {"matplotlib", "plotly", "jinja2", "pyarrow", "cryptography", "argcomplete"}
tried = []

class Blocked:
    def find_spec(self, name, path=None, target=None):
        package, frame = name.partition(".")[0], sys._getframe()
        while package == "cryptography" and frame is not None:  # Flower needs it itself
            if frame.f_globals.get("__name__", "").startswith("flwr"):
                return None
            frame = frame.f_back
        if package in PACKAGES:
            tried.append(name)
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Blocked())
import fedkd
from fedkd.cli.main import main

for words in json.loads(sys.argv[1]):
    status = main(words)
print(json.dumps([status, tried]))
"""
"""Runs commands without the packages; its last line is the last status and what was to be imported."""
STREAM = """
name = "stream"
rounds = 2
clients = [{ model = "mlp" }]
data = { dataset = "digits", clients = 2, transfer = { size = 20 } }
continual = { tasks = { count = 2 }, rounds_per_task = 1 }
engine = { kind = "inline" }
"""
BENCH = """
name = "two"
base = "stream.toml"
parallel = false
[grid]
"training.lr" = [0.01, 0.001]
"""
QUICKSTART = ("run", "quickstart", "--engine", "inline", "--set", "rounds=1", "data.clients=3", "--out")


def without(folder: Path, *commands: Sequence[str]) -> tuple[int, list[str], str]:
    """Run commands; return the last one's status, what they tried to import, and standard error."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps(commands)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return *json.loads(done.stdout.splitlines()[-1]), done.stderr


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_quickstart_ends_well_and_names_what_it_leaves_out(tmp_path):
    status, _, told = without(tmp_path, [*QUICKSTART, "out"])
    assert (status, told) == (0, f"skipped: report.html; report.html needs plotly; {INSTALL}")
    assert main([*QUICKSTART, str(tmp_path / "with")]) == 0
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("out", "with")]
    assert metrics[0] and metrics[0] == metrics[1]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["status"] == "done"
    assert names(tmp_path / "out") | {"report.html"} == names(tmp_path / "with")


def test_a_run_with_several_figures_tells_it_once_and_a_report_has_status_2(tmp_path):
    (tmp_path / "stream.toml").write_text(STREAM)
    run = ["run", "stream.toml", "--quiet", "--out", "out"]
    status, _, told = without(tmp_path, run, ["report", "out", "--out", "page"])
    left_out, error = told.splitlines(keepends=True)
    assert left_out == f"skipped: accuracy_matrix.png, report.html; a figure needs matplotlib; {INSTALL}"
    assert (status, error) == (2, f"error: report.html needs plotly; {INSTALL}")
    assert {"accuracy_matrix.csv", "continual_metrics.csv", "summary.json"} <= names(tmp_path / "out")
    assert not (tmp_path / "page").exists() and not [*tmp_path.glob("**/*.png"), *tmp_path.glob("**/*.html")]


def test_a_bench_has_its_tables_and_tells_once_what_it_leaves_out(tmp_path):
    (tmp_path / "stream.toml").write_text(STREAM)
    (tmp_path / "two.toml").write_text(BENCH)
    status, _, told = without(tmp_path, ["bench", "two.toml", "--out", "out"])
    files = "results.parquet, results.csv, figures, report.html"
    assert (status, told) == (0, f"skipped: {files}; a table of all values needs pyarrow; {INSTALL}")
    assert {"cells.csv", "table.md", "table.csv", "table.tex", "study.json"} <= names(tmp_path / "out")
    assert not {"results.parquet", "results.csv", "figures", "report.html"} & names(tmp_path / "out")


def test_verbs_that_run_nothing_import_no_package_of_an_extra(tmp_path):
    assert without(tmp_path, ["list"], ["check", "quickstart"]) == (0, [], "")


def test_doctor_knows_the_packages_of_every_extra():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = {
        extra: tuple(re.split(r"[^\w-]", need, maxsplit=1)[0] for need in needs)
        for extra, needs in project["optional-dependencies"].items()
        if extra not in ("test", "docs", "dev")
    }
    assert extras == EXTRAS
    listed = (REPOSITORY / "docs" / "tutorial.md").read_text()
    assert all(f"| `{extra}` |" in listed for extra in extras)
