"""Benches whose cells learn streams of tasks."""

from __future__ import annotations

import csv
import json

import pyarrow.parquet
import pytest

from fedkd.benchmark.cells import make_cells, shown_metrics
from fedkd.benchmark.runner import bench
from fedkd.benchmark.schema import load_bench
from fedkd.cli.main import main

pytestmark = pytest.mark.usefixtures("no_rendering", "no_report")

USUAL = ("bwt", "forgetting", "stored_bytes_per_task", "peak_bytes", "seconds")


@pytest.fixture
def stream_tables(tables):
    """Two learners on two tasks of three digits each, two clients and two seeds, in this process."""
    scenario = tables["scenario"]
    del scenario["rounds"]
    scenario["data"] = scenario["data"] | {
        "clients": 2,
        "partition": {"scheme": "iid", "samples_per_client": 50},
        "transfer": {"size": 0},
    }
    scenario["fusion"] = {"strategy": "local"}
    scenario["continual"] = {"learner": "naive", "tasks": {"count": 2, "classes_per_task": 3}}
    return tables | {
        "parallel": False,
        "baseline": {"continual.learner": "naive"},
        "grid": {"continual.learner": ["naive", "ewc"]},
    }


def default_metrics(write, tables):
    found = load_bench(write(tables))
    return shown_metrics(found, make_cells(found))


def test_shown_metrics_follow_the_heads(write, stream_tables, tables):
    def average(*protocols):
        return tuple(f"average_accuracy_{protocol}_incremental" for protocol in protocols)

    assert default_metrics(write, stream_tables) == (*average("task", "class"), *USUAL)
    stream_tables["set"] = {"continual.evaluate_without_task": False}
    assert default_metrics(write, stream_tables) == (*average("task"), *USUAL)
    stream_tables["set"] = {}
    stream_tables["grid"]["continual.head"] = ["domain", "class"]
    assert default_metrics(write, stream_tables) == (*average("task", "domain", "class"), *USUAL)
    assert default_metrics(write, stream_tables | {"metrics": ["fwt_local"]}) == ("fwt_local",)


def test_accuracies_are_shown_without_a_stream(write, tables):
    moments = ("accuracy_before_fusion", "accuracy")
    assert default_metrics(write, tables) == tuple(f"{m}_{s}" for s in ("local", "global") for m in moments)


def test_a_stream_bench_runs_from_end_to_end(write, stream_tables, tmp_path):
    out = tmp_path / "out"
    result = bench(write(stream_tables), out=out)
    assert not result.failed and len(result.cells) == 4
    runs = {(run.levels[0], run.seed): run for run in result.study.runs}
    for cell in result.cells:
        summary = json.loads((cell.folder / "summary.json").read_text())["continual"]
        run = runs[cell.cell.levels["continual.learner"].label, cell.cell.seed]
        for name in ("average_accuracy_task_incremental", "bwt", "stored_bytes_per_task", "peak_bytes"):
            assert run.final[name] == summary[name]["mean"]
        for protocol in ("task_incremental", "class_incremental"):
            curve = dict(run.tasks[f"average_accuracy_{protocol}"])
            assert list(curve) == [1, 2]
            assert curve[2] == pytest.approx(summary[f"average_accuracy_{protocol}"]["mean"])
    assert (
        runs["naive", 1].final["stored_bytes_per_task"] == 0 < runs["ewc", 1].final["stored_bytes_per_task"]
    )

    header = next(line for line in result.table().splitlines() if line.startswith("| learner"))
    shown = (
        "average accuracy, task-incremental (%)",
        "BWT (points)",
        "stored per task (kB)",
        "time of a run (s)",
    )
    assert all(title in header for title in shown)
    figures = {path.stem for path in (out / "figures").iterdir()}
    assert {"tasks-average_accuracy_class_incremental", "accuracy-against-stored"} <= figures
    tasks = pyarrow.parquet.read_table(out / "results.parquet")["task"].to_pylist()
    assert set(tasks) == {None, 0, 1}
    with (out / "cells.csv").open() as file:
        row = next(csv.DictReader(file))
    assert float(row["bwt"]) == pytest.approx(runs["naive", 1].final["bwt"]) and row["peak_bytes"] == "0.0"


def test_metrics_of_learners_can_be_shown(write, stream_tables, tmp_path):
    stream_tables |= {"seeds": 1, "grid": {"continual.learner": ["naive", "exssnet"]}}
    result = bench(write(stream_tables | {"metrics": ["free_share_train"]}), out=tmp_path / "out")
    naive, exssnet = result.study.runs
    # The second of two masks of a tenth of the weights has nearly nine tenths of them for itself.
    assert "free_share_train" not in naive.final
    assert 0.8 < exssnet.final["free_share_train"] < 1.0


def test_an_unsupported_learner_is_refused_before_any_run(write, stream_tables, tmp_path, capsys):
    stream_tables["variants"] = {
        "learner": {"naive": {}, "gpm": {"continual.learner": "gpm", "continual.threshold": [0.9]}}
    }
    path = write(stream_tables | {"grid": {}, "baseline": {"learner": "naive"}})
    assert main(["bench", str(path), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1 and "cell 'learner=gpm seed=1': continual.threshold: must be one number" in err
    )
    assert not any((tmp_path / "out" / "runs").iterdir())


def test_the_time_of_a_stream_is_estimated_from_its_first_round(write, stream_tables, tmp_path, capsys):
    stream_tables["scenario"]["continual"]["rounds_per_task"] = 2
    path = write(stream_tables)
    assert main(["bench", str(path), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "time   about" in out and "other cells and later tasks may take more or less" in out


@pytest.mark.parametrize(
    ("name", "words"),
    [("bwtt", "did you mean 'bwt'?"), ("plasticity", "for streams average_accuracy, bwt, forgetting")],
)
def test_misspelt_continual_metrics_are_refused(name, words, write, stream_tables, capsys):
    path = write(stream_tables | {"metrics": [name]})
    assert main(["bench", str(path), "--dry-run"]) == 2
    assert words in capsys.readouterr().err
