"""Benches from end to end: in this process, on Ray, interrupted, with cells that fail."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet
import pytest
import ray
import tomli_w
from processes import Fork
from stopping import StopInRound

import fedkd
from fedkd.benchmark import estimate, scheduler
from fedkd.benchmark.runner import BenchResult, bench, partial_study, plan_bench
from fedkd.benchmark.worker import CellOutcome, run_cell
from fedkd.cli.main import main
from fedkd.errors import Interrupted
from fedkd.plan.load import load_scenario
from fedkd.report.statistics import interval
from fedkd.report.study import read_study, write_study
from fedkd.tracking.events import RoundReport

pytestmark = pytest.mark.usefixtures("no_rendering", "no_report")


def run_folders(out: Path) -> list[Path]:
    return sorted((out / "runs").iterdir())


def stamps(out: Path) -> dict[str, int]:
    return {folder.name: (folder / "metrics.jsonl").stat().st_mtime_ns for folder in run_folders(out)}


@pytest.fixture
def in_turn(tables, write) -> Path:
    """A bench whose cells run in this process."""
    return write(tables | {"parallel": False})


@pytest.fixture(scope="module")
def ran(make_tables, tmp_path_factory) -> BenchResult:
    """A bench whose cells ran in this process; tests that change its folder take `copied`."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "bench.toml").write_text(tomli_w.dumps(make_tables() | {"parallel": False}))
    return fedkd.bench(folder / "bench.toml", out=folder / "out")


@pytest.fixture
def copied(ran, tmp_path) -> Path:
    """A copy of the folder of `ran`, whose bench file is `in_turn`."""
    return Path(shutil.copytree(ran.folder, tmp_path / "out"))


def test_a_bench_runs_all_cells_and_writes_its_results(ran):
    result, out = ran, ran.folder
    assert result.folder == out and not result.failed and len(result.cells) == 4
    assert {path.name for path in out.iterdir()} >= {
        *("results.parquet", "results.csv", "cells.csv", "table.md", "table.csv", "figures", "runs"),
        *("table.tex", "study.json", "bench.toml"),
    }
    assert read_study(out) == result.study
    again = plan_bench(out / "bench.toml", out=out)
    assert [cell.hash for cell in again.cells] == [cell.cell.hash for cell in result.cells]
    assert (out / "table.md").read_text() == result.table()
    assert (out / "figures" / "rounds-accuracy_local.png").exists()

    rows = pyarrow.parquet.read_table(out / "results.parquet").to_pylist()
    recorded = []
    for cell in result.cells:
        for line in (cell.folder / "metrics.jsonl").read_text().splitlines():
            strategy = cell.cell.levels["fusion.strategy"].value
            named = {"fusion.strategy": strategy, "seed": cell.cell.seed, "hash": cell.cell.hash[:8]}
            recorded.append(named | {"status": "done"} | json.loads(line))
    assert rows == recorded
    with (out / "results.csv").open() as file:
        text = list(csv.DictReader(file))
    as_text = [{k: "" if v is None else v for k, v in row.items()} for row in recorded]
    assert [row | {"value": float(row["value"])} for row in text] == [
        {k: v if k == "value" else str(v) for k, v in row.items()} for row in as_text
    ]


def test_the_table_averages_the_summaries_of_its_cells(ran):
    values = {}
    for cell in ran.cells:
        final = json.loads((cell.folder / "summary.json").read_text())["final"]
        values[cell.cell.levels["fusion.strategy"].value, cell.cell.seed] = final["accuracy_local"]["mean"]
    difference = interval([values["knfu", seed] - values["local", seed] for seed in (1, 2)])
    row = next(line for line in ran.table().splitlines() if line.startswith("| knfu"))
    assert f"{100 * difference.mean:+.1f} ± {100 * difference.half:.1f}" in row


def test_cells_csv_lists_the_cost_of_each_cell(ran):
    out = ran.folder
    with (out / "cells.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [(row["fusion.strategy"], row["seed"], row["status"]) for row in cells] == [
        ("local", "1", "done"),
        ("knfu", "1", "done"),
        ("local", "2", "done"),
        ("knfu", "2", "done"),
    ]
    # Three clients send float32 logits of 60 transfer samples and 10 classes in each of two rounds.
    assert [row["bytes_up"] for row in cells if row["seed"] == "1"] == ["0", str(3 * 60 * 10 * 4 * 2)]
    assert all(float(row["seconds"]) > 0 and (out / row["folder"]).is_dir() for row in cells)


def test_a_second_call_runs_nothing_and_writes_the_same_files(in_turn, copied):
    out = copied
    files = [path for path in out.rglob("*") if path.is_file() and "runs" not in path.relative_to(out).parts]
    before, content = stamps(out), {path: path.read_bytes() for path in files}
    bench(in_turn, out=out)
    assert stamps(out) == before
    assert {path: path.read_bytes() for path in files} == content


def test_only_missing_cells_run(in_turn, copied, monkeypatch):
    out = copied
    monkeypatch.setattr("fedkd.report.draw_figures", lambda *arguments: None)
    before = stamps(out)
    unfinished, removed, *_ = run_folders(out)
    (unfinished / "summary.json").unlink()
    shutil.rmtree(removed)
    bench(in_turn, out=out, overrides=["seeds=[2,1]"])
    changed = {name for name, stamp in stamps(out).items() if stamp != before[name]}
    assert removed.name in changed and changed <= {removed.name, unfinished.name}
    assert (unfinished / "summary.json").exists()
    bench(in_turn, out=out, overrides=["seeds=3"])
    assert len(run_folders(out)) == 6


@pytest.mark.parametrize("kind", ["ray", "inline"])
def test_cells_run_in_parallel_under_every_engine_of_the_base(kind, tables, write, tmp_path, monkeypatch):
    @contextmanager
    def on_ray(engine, progress):
        yield SimpleNamespace(run=lambda jobs, work: run(jobs, progress, work))

    def run(jobs, progress, work):
        seen.append(len(jobs))
        return scheduler.run_in_turn(jobs, progress, work)

    seen: list[int] = []
    monkeypatch.setattr(scheduler, "on_ray", on_ray)
    tables["scenario"]["engine"] = {"kind": kind}
    assert not bench(write(tables), out=tmp_path / "out", overrides=["rounds=1", "seeds=1"]).failed
    assert seen == [2]


def test_an_interrupted_cell_resumes_from_its_checkpoint(in_turn, tmp_path):
    rounds = ["rounds=5"]
    whole = bench(in_turn, out=tmp_path / "whole", overrides=rounds)
    plan = plan_bench(in_turn, rounds, tmp_path / "broken")
    cell = plan.cells[1]
    folder = plan.runs / cell.folder_name
    scenario = cell.scenario.model_copy(
        update={"engine": cell.scenario.engine.model_copy(update={"kind": "inline"})}
    )
    with pytest.raises(Interrupted):
        fedkd.run(scenario, out=folder, observers=[StopInRound(2)])
    (folder / "checkpoints" / "mark").touch()
    broken = bench(in_turn, out=tmp_path / "broken", overrides=rounds)
    assert (folder / "checkpoints" / "mark").exists()
    assert broken.table() == whole.table()
    name = "results.parquet"
    assert (broken.folder / name).read_bytes() == (whole.folder / name).read_bytes()


@pytest.fixture
def diverging(tables) -> dict:
    """A bench with a cell that fails with every seed, and one that does not."""
    tables["grid"] = {"training.lr": [0.01, 1e30]}
    return tables | {"baseline": {}}


def test_a_failed_cell_is_recorded_and_the_others_run(diverging, write, tmp_path, capsys):
    out = tmp_path / "out"
    path = write(diverging | {"parallel": False})
    assert main(["bench", str(path), "--out", str(out)]) == 3
    printed, err = capsys.readouterr()
    assert err.startswith("error: 2 of 4 cells failed") and err.count("\n") == 1
    assert "failed  lr=1e+30 seed=1: " in printed
    with (out / "cells.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [row["status"] for row in cells] == ["done", "failed"] * 2
    assert all("round 1" in row["error"] and "\n" not in row["error"] for row in cells[1::2])
    assert "| 1e+30 | 0 | – | – |" in (out / "table.md").read_text()
    assert "2 of 4 runs are missing" in (out / "table.md").read_text()
    statuses = pyarrow.parquet.read_table(out / "results.parquet", columns=["training.lr", "status"])
    assert {row["status"] for row in statuses.to_pylist() if row["training.lr"] == 0.01} == {"done"}


@pytest.mark.alone
def test_on_ray_the_results_are_the_same(diverging, write, tmp_path, ray_session):
    parallel = bench(write(diverging | {"seeds": 1}), out=tmp_path / "ray")
    alone = bench(write(diverging | {"seeds": 1, "parallel": False}), out=tmp_path / "inline")
    assert [cell.outcome.status for cell in parallel.cells] == ["done", "failed"]
    assert (parallel.folder / "results.parquet").read_bytes() == (
        alone.folder / "results.parquet"
    ).read_bytes()


CRASH = """
import os
from dataclasses import dataclass
from fedkd.fusion.distillation.fedmd import FedMD

@dataclass(frozen=True)
class Crash(FedMD):
    def fuse(self, knowledge, memory):
        os._exit(1)
"""


@pytest.mark.alone
def test_a_cell_that_kills_its_worker_is_recorded_as_failed(tables, write, tmp_path, ray_session):
    (tmp_path / "crash.py").write_text(CRASH)
    tables |= {"grid": {"fusion.strategy": ["crash:Crash", "local"]}, "seeds": 1}
    result = bench(write(tables), out=tmp_path / "out")
    assert [cell.outcome.status for cell in result.cells] == ["failed", "done"]
    assert all("its Ray worker died" in cell.outcome.error for cell in result.failed)


def test_more_cpus_than_the_cluster_has_are_refused(tables, write, tmp_path, ray_session, capsys):
    path = write(tables | {"set": {"engine.cpus_per_actor": 64.0}})
    assert main(["bench", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "engine.cpus_per_actor: asks for 64 CPUs" in capsys.readouterr().err


def test_an_edited_cell_is_not_resumed(tmp_path, digits_toml):
    scenario, folder = load_scenario(digits_toml), tmp_path / "cell"
    with pytest.raises(Interrupted):
        fedkd.run(scenario, out=folder, observers=[StopInRound(1)])
    text = (folder / "scenario.toml").read_text()
    (folder / "scenario.toml").write_text(text.replace("lr = 0.01", "lr = 0.5"))
    outcome = run_cell(scenario.model_dump_json(), str(folder))
    assert outcome.status == "failed" and "training.lr was 0.01 and is 0.5" in outcome.error


def test_a_cell_that_cannot_start_fails_with_its_error_text(tmp_path, digits_toml):
    (tmp_path / "cell" / "scenario.toml").mkdir(parents=True)  # neither a run nor room for one
    outcome = run_cell(load_scenario(digits_toml).model_dump_json(), str(tmp_path / "cell"))
    assert outcome.status == "failed" and outcome.error
    assert (tmp_path / "cell" / "error.txt").read_text()


def test_a_dry_run_lists_the_work_and_the_source_of_its_estimate(ran, in_turn, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["bench", str(in_turn), "--out", str(out), "--dry-run"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "axis   fusion.strategy: local, knfu" in printed and "seeds  1, 2" in printed
    assert "cells  4, 0 done" in printed and printed.count("to do") == 4
    assert "one round of the cell 'strategy=local seed=1' took" in printed
    assert not out.exists()
    shutil.copytree(ran.folder, out)
    shutil.rmtree(run_folders(out)[0])
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "cells  4, 3 done" in printed and printed.count("to do") == 1
    assert "measured on 3 finished cells" in printed


@pytest.mark.parametrize(
    "running", [pytest.param(1, id="in turn"), pytest.param(2, id="on Ray", marks=pytest.mark.alone)]
)
def test_ctrl_c_saves_running_cells_and_names_the_resume_command(running, tables, write, tmp_path, request):
    path, out = write(tables | {"parallel": running > 1}), tmp_path / "out"
    words = ["--set", "rounds=5000", "checkpoint_every=5000", "engine.cpus_per_actor=0.5"]
    if running > 1:  # as one more driver of the cluster that is there
        request.getfixturevalue("ray_session")
        words.append(f"engine.address={ray.get_runtime_context().gcs_address}")
    process = Fork(["bench", path, "--out", out, *words], tmp_path)
    deadline = time.monotonic() + 300  # of a machine with other things to do
    while time.monotonic() < deadline:
        started = [path for path in out.glob("runs/*/metrics.jsonl") if path.stat().st_size]
        if len(started) >= running:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert process.stderr == "error: stopped with 0/4 done; go on with the same command\n"
    assert len(list(out.glob("runs/*/checkpoints/round-*"))) >= running


def test_a_killed_bench_has_a_page_of_its_finished_cells(copied, capsys):
    whole = read_study(copied)
    for name in ("study.json", "cells.csv", "report.html"):
        (copied / name).unlink(missing_ok=True)
    shutil.rmtree(run_folders(copied)[0])
    assert main(["report", str(copied)]) == 0
    assert f"1 of {len(whole.runs)} runs are missing." in (copied / "report.html").read_text()
    for folder in run_folders(copied):
        shutil.rmtree(folder)
    assert main(["report", str(copied)]) == 2
    assert capsys.readouterr().err == f"error: {copied}: no cell of the bench is done yet\n"


def test_the_page_includes_cells_newer_than_the_study(copied):
    assert partial_study(copied) is None, "the study has them all"
    whole = read_study(copied)
    os.utime(copied / "study.json", (0, 0))
    study = partial_study(copied)
    assert study is not None and study.missing == 0
    write_study(study, copied)
    assert read_study(copied) == whole


def test_two_benches_do_not_share_a_folder(in_turn, tmp_path):
    from fedkd.errors import UserError
    from fedkd.tracking.run_folder import lock_run_folder

    (tmp_path / "out").mkdir()
    with lock_run_folder(tmp_path / "out"), pytest.raises(UserError, match="another process"):
        bench(in_turn, out=tmp_path / "out")


@pytest.mark.parametrize("samples", [[5000, 60], [60, 5000]], ids=["the first", "another"])
def test_a_dry_run_names_cells_that_cannot_run(samples, tables, write, tmp_path, capsys):
    tables |= {"grid": {"data.partition.samples_per_client": samples}, "baseline": {}, "seeds": 1}
    path, errors = write(tables), []
    for more in (["--dry-run"], []):
        assert main(["bench", str(path), "--out", str(tmp_path / "out"), "--quiet", *more]) == 2
        errors.append(capsys.readouterr().err)
    where = f"error: {path}: cell 'samples_per_client=5000 seed=1': data.partition.samples_per_client: "
    assert errors[0] == errors[1] and errors[0].startswith(where) and errors[0].count("\n") == 1


def test_asynchronous_rounds_are_estimated_by_their_uploads(write, tables, tmp_path, monkeypatch):
    def timed(scenario_json, folder, observers):
        with suppress(KeyboardInterrupt):
            for round, seconds in ((1, 9.0), (2, 3.0), (3, 50.0)):
                observers[0].round_finished(RoundReport(round, 3, seconds=seconds))
        return CellOutcome("interrupted")

    monkeypatch.setattr(estimate, "run_cell", timed)
    tables = tables | {"grid": {"asynchronous.buffer": [3, 1]}, "baseline": {"asynchronous.buffer": 3}}
    plan = plan_bench(write(tables), out=tmp_path / "out")
    # In the second round three uploads took 3 s; of two rounds each, and two seeds.
    assert estimate.estimate(plan.cells, plan.folder, plan.compared)[0] == 2 * (2 * 3 + 2 * 1)
