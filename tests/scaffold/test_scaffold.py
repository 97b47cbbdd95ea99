from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import processes
import pytest

from fedkd.cli.main import main
from fedkd.scaffold import IMPORTED, KINDS, new

SHORT = {
    "strategy": ["rounds=1"],
    "model": ["rounds=1"],
    "learner": ["continual.tasks.count=2", "continual.tasks.classes_per_task=2"],
}


def run(*words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaffold_passes_its_own_test_and_runs(kind: str, tmp_path: Path, capsys):
    assert main(["new", kind, "my_idea", "--out", str(tmp_path / "deep" / "down")]) == 0
    folder = tmp_path / "deep" / "down"
    assert sorted(path.name for path in folder.iterdir()) == ["my_idea.py", "my_idea.toml", "test_my_idea.py"]
    printed = capsys.readouterr().out
    assert f"python -m pytest {folder / 'test_my_idea.py'}" in printed
    assert f"fedkd run {folder / 'my_idea.toml'}" in printed

    # A temporary folder of its own: in the shared one it would tidy up after suites long ended, for a minute.
    words = ["-q", "-p", "no:cacheprovider", "--basetemp", tmp_path / "temporary", folder / "test_my_idea.py"]
    status, said, _ = processes.run(words, tmp_path, main=pytest.main)
    assert status == 0, said
    assert " passed" in said and "failed" not in said and "skipped" not in said

    out = tmp_path / "done"
    words = ["run", folder / "my_idea.toml", "--engine", "inline", "--out", out, "--set", *SHORT[kind]]
    status, _, error = processes.run(words, tmp_path)
    assert status == 0, error
    assert (out / "summary.json").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaffold_passes_ruff(kind: str, tmp_path: Path):
    pytest.importorskip("ruff")
    list(new(kind, "my_idea", tmp_path))
    for words in (("check", "--select", "E,F,I,UP,B"), ("format", "--check")):
        done = run("-m", "ruff", *words, "--isolated", "--line-length", "110", tmp_path, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["my_idea.py", "my_idea.toml", "test_my_idea.py"])
def test_existing_files_are_not_overwritten(kind: str, file: str, tmp_path: Path, capsys):
    (tmp_path / file).write_text("mine")
    assert main(["new", kind, "my_idea", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / file}: already exists")
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert (tmp_path / file).read_text() == "mine"


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("strategy", "knfu", "a strategy named 'knfu' already exists"),
        ("model", "cnn", "a model named 'cnn' already exists"),
        ("learner", "ewc", "a learner named 'ewc' already exists"),
        ("model", "torch", "a module named 'torch' already exists"),
        ("model", "random", "a module named 'random' already exists"),
        ("strategy", "my-idea", "must be lower-case letters"),
        ("strategy", "MyIdea", "must be lower-case letters"),
        ("strategy", "2much", "must be lower-case letters"),
        ("strategy", "class", "must be lower-case letters"),
        ("strategy", "../up", "must be lower-case letters"),
        ("strategy", "test_me", "must not start with"),
        ("learner", "step", "the file already imports a class of the name"),
        ("strategy", "knowledge", "the file already imports a class of the name"),
    ],
)
def test_invalid_module_names_are_refused(kind: str, name: str, words: str, tmp_path: Path, capsys):
    assert main(["new", kind, name, "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: NAME: ") and words in message and message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_reported(tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["new", "model", "my_idea", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_names_imported_by_a_template_are_refused(kind: str, tmp_path: Path):
    import ast

    list(new(kind, "my_idea", tmp_path))
    tree = ast.parse((tmp_path / "my_idea.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    refused = {"".join(part.capitalize() for part in name.split("_")) for name in IMPORTED}
    assert {name for name in imported if name[0].isupper() and not name.isupper()} <= refused
