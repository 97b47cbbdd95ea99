"""A bench folder holds one bench and the files of its cells."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from fedkd.benchmark.finished import read_summary
from fedkd.benchmark.runner import BenchResult, bench
from fedkd.cli.main import main

pytestmark = pytest.mark.usefixtures("no_report", "undrawn")

RENAMED = {"how": {"alone": {"fusion.strategy": "local"}, "knfu": {}}}


@pytest.fixture(scope="module")
def undrawn() -> Iterator[None]:
    """Nothing here is about figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedkd.report.draw_figures", lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def ran(make_tables, tmp_path_factory) -> BenchResult:
    """A bench whose cells ran in this process."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "bench.toml").write_text(tomli_w.dumps(make_tables() | {"parallel": False}))
    return bench(folder / "bench.toml", out=folder / "out")


@pytest.fixture
def copied(ran, tmp_path) -> Path:
    """A copy of the folder of `ran`."""
    return Path(shutil.copytree(ran.folder, tmp_path / "out"))


@pytest.fixture
def write_changed(tables, write) -> Callable[..., Path]:
    """Write the bench of `ran` with tables of its own."""
    return lambda **changes: write(tables | {"parallel": False} | changes)


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "changes", "said"),
    [
        (["training.lr=0.5"], {}, "4 runs of another bench: training.lr was 0.01 and is 0.5;"),
        (["seeds=1"], {}, "2 runs of another bench: seed was 2 and is 1;"),
        (["seeds=[2,3,4]"], {}, "2 runs of another bench: seed was 1 and is 2, 3 or 4;"),
        ([], {"grid": {"fusion.strategy": ["local"]}}, "fusion.strategy was 'knfu' and is 'local',"),
        ([], {"set": {"training.batch_size": 10, "rounds": 3}}, "rounds was 2 and is 3, training."),
        ([], {"grid": {}, "variants": RENAMED, "baseline": {}}, "is now called alone-seed1-"),
    ],
    ids=["another set", "fewer seeds", "other seeds", "fewer values", "two keys", "another name"],
)
@pytest.mark.parametrize("dry", [False, True], ids=["run", "dry run"])
def test_a_folder_of_another_bench_is_refused_and_unchanged(
    dry, words, changes, said, write_changed, copied, capsys
):
    before = content(copied)
    command = ["bench", str(write_changed(**changes)), "--out", str(copied), *["--dry-run"] * dry]
    assert main([*command, *["--set", *words] * bool(words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --out: {copied} holds ") and error.count("\n") == 1
    assert said in error and "choose another folder with --out" in error
    assert content(copied) == before


def test_a_bench_with_added_cells_resumes(write_changed, copied):
    done = {path.name for path in (copied / "runs").iterdir()}
    path = write_changed(seeds=3, grid={"fusion.strategy": ["knfu", "fedmd", "local"]}, metrics=["seconds"])
    stamps = {name: (copied / "runs" / name / "metrics.jsonl").stat().st_mtime_ns for name in done}
    result = bench(path, out=copied)
    assert len(result.cells) == 9 and not result.failed
    assert stamps == {name: (copied / "runs" / name / "metrics.jsonl").stat().st_mtime_ns for name in done}


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def one_line_less(file: Path) -> None:
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))


def other_digit(file: Path) -> None:
    text = file.read_text()
    place = text.rindex("0.") + 2
    file.write_text(f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}")


def hollow(file: Path) -> None:
    file.write_text('{"status": "done"}')


READABLE = [
    ("metrics.jsonl", one_line_less),
    ("metrics.jsonl", other_digit),
    ("summary.json", other_digit),
    ("digests.json", cut_short),
]
UNREADABLE = [
    ("metrics.jsonl", cut_short),
    ("metrics.jsonl", lambda file: file.write_text("not JSON\n")),
    ("metrics.jsonl", lambda file: file.write_text("[1]\n")),
    ("metrics.jsonl", lambda file: file.write_bytes(bytes(64))),
    ("metrics.jsonl", Path.unlink),
    ("timings.jsonl", lambda file: file.write_text("3\n")),
    ("timings.jsonl", Path.unlink),
    ("summary.json", cut_short),
    ("summary.json", hollow),
    ("summary.json", lambda file: file.write_text("[" * 100_000)),
]


@pytest.mark.parametrize(("name", "harm"), READABLE + UNREADABLE)
def test_damaged_files_of_a_bench_cell_are_noticed(name, harm, ran, tmp_path):
    folder = Path(shutil.copytree(ran.cells[0].folder, tmp_path / "run"))
    assert read_summary(folder) is not None
    harm(folder / name)
    assert read_summary(folder) is None


@pytest.mark.parametrize(("name", "harm"), UNREADABLE)
def test_unreadable_files_of_a_run_without_digests_are_noticed(name, harm, ran, tmp_path):
    folder = Path(shutil.copytree(ran.cells[0].folder, tmp_path / "run"))
    (folder / "digests.json").unlink()
    assert read_summary(folder) is not None
    harm(folder / name)
    assert read_summary(folder) is None


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
def test_a_damaged_cell_is_reported_and_runs_again(name, ran, write_changed, copied, capsys):
    path = write_changed()
    damaged, *others = (copied / "runs" / cell.cell.folder_name for cell in ran.cells)
    whole = (damaged / "metrics.jsonl").read_bytes()
    stamps = [(other / "summary.json").stat().st_mtime_ns for other in others]
    cut_short(damaged / name)
    (damaged / "mine.txt").touch()

    assert main(["bench", str(path), "--out", str(copied), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "cells  4, 3 done" in printed and f"(damaged: {name} " in printed

    assert main(["bench", str(path), "--out", str(copied)]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "runs again" in line]
    assert len(said) == 1 and said[0].startswith("strategy=local seed=1 is damaged and runs again: ")
    assert (damaged / "metrics.jsonl").read_bytes() == whole and not (damaged / "mine.txt").exists()
    assert [(other / "summary.json").stat().st_mtime_ns for other in others] == stamps
    assert json.loads((damaged / "summary.json").read_text())["status"] == "done"


def test_leftovers_of_a_failed_cell_do_no_harm(tables, write, tmp_path):
    changes: dict[str, Any] = {"grid": {"training.lr": [0.01, 1e30]}, "baseline": {}, "seeds": 1}
    path = write(tables | {"parallel": False} | changes)
    failed = bench(path, out=tmp_path / "out").failed[0]
    (failed.folder / "metrics.jsonl").write_text('not JSON\n{"round": "one"}\n')
    assert [cell.outcome.status for cell in bench(path, out=tmp_path / "out").cells] == ["done", "failed"]
