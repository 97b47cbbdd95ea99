"""Runs below a folder are listed with how far they are."""

from __future__ import annotations

import json
import shutil

import pytest

import fedkd
from fedkd.cli.main import main
from fedkd.errors import UserError
from fedkd.tracking.run_folder import lock_run_folder

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(scope="module")
def done(make_digits_scenario, tmp_path_factory):
    tables = make_digits_scenario() | {"rounds": 1}
    return fedkd.run(tables, out=tmp_path_factory.mktemp("runs") / "done", progress=False).folder


@pytest.fixture
def folder(done, tmp_path):
    """A finished run, one that stopped, one that was interrupted, a bench, and what is no run."""
    for name in (
        "a-done",
        "b-stopped",
        "deep/er/c-interrupted",
        "bench-x/runs/cell-1",
        "bench-x/runs/cell-2",
    ):
        shutil.copytree(done, tmp_path / name)
    for name, status in (("b-stopped", "running"), ("deep/er/c-interrupted", "interrupted")):
        (tmp_path / name / "summary.json").unlink()
        present = tmp_path / name / "progress.json"
        present.write_text(json.dumps(json.loads(present.read_text()) | {"status": status, "finished": 0}))
    (tmp_path / "bench-x" / "runs" / "cell-2" / "summary.json").unlink()
    (tmp_path / "d-broken").mkdir()
    (tmp_path / "d-broken" / "scenario.toml").write_text("rounds = ")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").touch()
    return tmp_path


def test_runs_are_listed_with_their_status(folder, done):
    found = {entry.folder.name: entry for entry in fedkd.runs(folder)}
    assert {name: entry.status for name, entry in found.items()} == {
        "a-done": "done",
        "b-stopped": "stopped",
        "bench-x": "1 done",
        "d-broken": "unreadable",
        "c-interrupted": "interrupted",
    }
    summary = json.loads((done / "summary.json").read_text())
    entry = found["a-done"]
    assert (entry.name, entry.strategy, entry.finished, entry.rounds) == ("digits-test", "knfu", 1, 1)
    assert entry.accuracy_global == summary["final"]["accuracy_global"]["mean"]
    assert entry.seconds == summary["seconds"] and entry.when is not None
    assert (found["b-stopped"].finished, found["b-stopped"].accuracy_local) == (0, None)
    with lock_run_folder(folder / "b-stopped"):
        assert {e.status for e in fedkd.runs(folder) if e.folder.name == "b-stopped"} == {"running"}


def test_runs_are_listed_as_a_table(folder, capsys):
    assert main(["runs", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "run",
        "name",
        "strategy",
        "status",
        "rounds",
        "local",
        "global",
        "time",
        "when",
    ]
    assert [line.split()[0] for line in lines[1:]] == [
        *("a-done", "b-stopped", "bench-x", "d-broken", "deep/er/c-interrupted")
    ]
    assert "bench of 2 runs" in lines[3] and " 1/1 " in lines[1] and " 0/1 " in lines[2]
    assert "<td" in fedkd.runs(folder)._repr_html_()


def test_a_bench_folder_and_a_run_folder_can_be_listed(folder, done):
    assert [entry.folder.name for entry in fedkd.runs(folder / "bench-x")] == ["cell-1", "cell-2"]
    (alone,) = fedkd.runs(done)
    assert alone.folder == done


def test_an_empty_folder_lists_no_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 2
    assert capsys.readouterr().err == "error: runs: no such folder\n"
    assert main(["runs", "."]) == 0
    assert capsys.readouterr().out == "no runs in .\n"
    with pytest.raises(UserError, match="the folder must be a path, got "):
        fedkd.runs(3)
