"""A run folder belongs to one run at a time."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tomli_w
from processes import Fork
from stopping import StopInRound

import fedkd
from fedkd.cli.main import main
from fedkd.errors import Interrupted, UserError
from fedkd.federation.checkpoint import CheckpointStore
from fedkd.plan.load import load_plan, load_scenario
from fedkd.plan.plan import resolve_plan
from fedkd.scenario.schema import Scenario
from fedkd.tracking.run_folder import (
    check_unchanged_scenario,
    lock_run_folder,
    new_run_folder,
    read_run_plan,
    write_plan,
)

pytestmark = pytest.mark.usefixtures("no_report")


def test_the_second_run_in_a_folder_is_refused(digits_toml, tmp_path):
    """Whoever comes second, before the first has written anything or after it is done, touches nothing."""
    out = tmp_path / "out"
    runs = []
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        words = ["run", digits_toml, "--out", out, "--seed", seed, "--quiet"]
        runs.append(Fork(words, tmp_path / str(seed)))
    assert sorted(process.wait() for process in runs) == [0, 2]
    (winner,) = (seed for seed, process in enumerate(runs, start=1) if process.wait() == 0)
    assert load_scenario(out / "scenario.toml").seed == winner
    alone = fedkd.run(load_scenario(digits_toml, seed=winner), out=tmp_path / "alone").folder
    assert (out / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()


def test_unnamed_runs_get_separate_folders(digits_toml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenario = load_scenario(digits_toml)
    with new_run_folder(scenario) as one, new_run_folder(scenario) as other:
        assert [one.name, other.name] == ["digits-test-seed7", "digits-test-seed7-2"]
    assert not one.exists() and not other.exists(), "nothing was written into them"


def test_a_run_that_cannot_start_keeps_existing_files_only(digits_toml, tmp_path):
    broken = load_scenario(digits_toml, ["data.dataset=npz", f'data.args={{path="{tmp_path}/nothing.npz"}}'])
    with pytest.raises(UserError):
        fedkd.run(broken, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(UserError):
        fedkd.run(broken, out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_half_written_files_of_a_killed_process_go_away(digits_toml, tmp_path):
    folder = fedkd.run(load_scenario(digits_toml), out=tmp_path / "out").folder
    (folder / ".scenario.toml.4711.tmp").write_text("half")
    fedkd.resume(folder)
    assert not list(folder.glob(".*.tmp"))


def test_an_unwritable_place_gives_one_line(digits_toml, tmp_path, capsys):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["run", str(digits_toml), "--out", str(out), "--quiet"]) == 2
        assert capsys.readouterr().err.startswith(f"error: --out: cannot write to {out}: ")
    for words in (["run", str(digits_toml), "--out", ""], ["resume", ""]):
        assert main(words) == 2
        assert "must be a folder name without NUL characters, got ''" in capsys.readouterr().err


def test_an_unwritable_place_is_reported_before_data_loads(digits_toml, tmp_path, monkeypatch):
    folder = fedkd.run(load_scenario(digits_toml), out=tmp_path / "out").folder
    monkeypatch.setattr("fedkd.data.load_data", lambda *arguments, **options: pytest.fail("loaded"))
    with pytest.raises(UserError, match="already holds a run"):
        fedkd.run(load_scenario(digits_toml), out=folder)
    with lock_run_folder(folder), pytest.raises(UserError, match="another process"):
        fedkd.resume(folder)
    assert json.loads((folder / "summary.json").read_text())["status"] == "done"


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_in_a_read_only_folder_cannot_resume(digits_toml, tmp_path, monkeypatch, capsys):
    """Also where the lock and what the last run has left may still be opened."""
    folder = fedkd.run(load_scenario(digits_toml), out=tmp_path / "out").folder
    (folder / "error.txt").write_text("of a run before")
    before = everything_in(folder)

    def refuse(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", refuse)  # a superuser may write anywhere else
    assert main(["resume", str(folder), "--quiet"]) == 2
    assert capsys.readouterr().err == f"error: cannot write to {folder}: Read-only file system\n"
    assert everything_in(folder) == before


def test_a_changed_scenario_is_reported_before_the_first_checkpoint(digits_toml, tmp_path):
    folder = fedkd.run(load_scenario(digits_toml), out=tmp_path / "out").folder
    shutil.rmtree(folder / "checkpoints")
    text = (folder / "scenario.toml").read_text()
    (folder / "scenario.toml").write_text(text.replace("seed = 7", "seed = 8"))
    with pytest.raises(
        UserError, match=r"scenario.toml: was changed after the run began, and no round is saved"
    ):
        fedkd.resume(folder)
    (folder / "scenario.toml").write_text(text.replace('name = "digits-test"', 'name = "other"'))
    assert fedkd.resume(folder).summary["name"] == "other", "which decides no result"


@pytest.mark.parametrize(
    ("size", "status", "told"),
    [
        (1000, 2, "File too large\n"),  # not even the scenario
        (
            20_000,
            3,
            "File too large; no round is saved yet; free disk space, then continue with: fedkd resume ",
        ),
    ],
)
def test_a_full_disk_gives_one_line_with_the_resume_command(
    size, status, told, digits_toml, tmp_path, capsys
):
    out = tmp_path / "out"
    with _files_up_to(size):
        assert main(["run", str(digits_toml), "--out", str(out), "--quiet"]) == status
    error = capsys.readouterr().err
    assert f"cannot write to {out}: {told}" in error and error.count("\n") == 1
    assert out.exists() == (status == 3)
    if status == 3:
        assert main(["resume", str(out), "--quiet"]) == 0


def test_a_full_disk_keeps_the_saved_rounds(digits_toml, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    save = CheckpointStore.save

    def fail(store, checkpoint):
        if checkpoint.round == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(store, checkpoint)

    monkeypatch.setattr(CheckpointStore, "save", fail)
    assert main(["run", str(digits_toml), "--out", str(out), "--quiet"]) == 3
    told = f"error: cannot write to {out}: No space left on device; round 1 is saved; free disk space"
    assert capsys.readouterr().err.startswith(told)


def test_a_hard_linked_copy_resumes_without_changing_the_original(digits_toml, tmp_path):
    folder = fedkd.run(load_scenario(digits_toml), out=tmp_path / "out").folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=os.link)
    fedkd.resume(copy, rounds=3)
    assert {path: path.read_bytes() for path in before} == before
    assert (copy / "metrics.jsonl").read_bytes().startswith((folder / "metrics.jsonl").read_bytes())


def test_a_moved_project_resumes_and_records_no_paths(digits_scenario, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "mine.py").write_text("from fedkd.models.zoo.mlp import mlp as small\n")
    tables = digits_scenario | {"clients": [{"model": "mine:small"}]}
    (project / "digits.toml").write_text(tomli_w.dumps(tables))
    plan = load_plan(project / "digits.toml")
    with pytest.raises(Interrupted):
        fedkd.run(plan, out=project / "runs" / "a", observers=[StopInRound(1)])
    assert 'plugin_path = [\n    "../..",\n]' in (project / "runs" / "a" / "scenario.toml").read_text()
    moved = tmp_path / "elsewhere" / "project"
    moved.parent.mkdir()
    project.rename(moved)
    assert main(["resume", str(moved / "runs" / "a"), "--quiet"]) == 0
    assert main(["export", str(moved / "runs" / "a")]) == 0
    assert main(["report", str(moved / "runs" / "a")]) == 0
    for name in ("scenario.toml", "report.html", "export/README.md", "export/clients.json"):
        assert str(tmp_path) not in (moved / "runs" / "a" / name).read_text(), name


def test_a_moved_scenario_without_checkpoints_resumes(digits_scenario, tmp_path):
    place = tmp_path / "sets"
    place.mkdir()
    data = digits_scenario["data"] | {"root": str(place)}
    folder = tmp_path / "a" / "out"
    folder.mkdir(parents=True)
    plan = resolve_plan(Scenario.model_validate(digits_scenario | {"data": data}), written=False)
    write_plan(folder, plan)
    folder.rename(tmp_path / "out")
    check_unchanged_scenario(tmp_path / "out", read_run_plan(tmp_path / "out"))


@contextmanager
def _files_up_to(size: int) -> Iterator[None]:
    """Have the system refuse files of more bytes, as a full disk does."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
