"""Metrics of streams that need a reference run with another learner."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest

from fedkd.benchmark.references import add_reference_metrics
from fedkd.benchmark.results import collect
from fedkd.benchmark.runner import bench, plan_bench
from fedkd.benchmark.worker import CellOutcome
from fedkd.errors import UserError
from fedkd.plan.client_roles import poisoned_clients

pytestmark = pytest.mark.usefixtures("no_report", "undrawn")

TASKS, ROUNDS_PER_TASK, CLIENTS = 2, 2, 3
RELATIVE = ("intransigence", "gain_over_single")


@pytest.fixture
def undrawn(monkeypatch):
    """Figures take longer than everything else and are tested elsewhere."""
    monkeypatch.setattr("fedkd.report.draw_figures", lambda *args: None)


@pytest.fixture
def stream_tables(tables):
    """Two tasks of three digits each, three clients of which one is poisoned, in this process."""
    scenario = tables["scenario"]
    del scenario["rounds"]
    scenario["data"] |= {
        "partition": {"scheme": "iid", "samples_per_client": 30},
        "transfer": {"size": 0},
        "test_size": 100,
    }
    scenario["fusion"] = {"strategy": "local"}
    scenario["faults"] = {"poisoned": 1 / CLIENTS, "poison": "flipped"}
    scenario["continual"] = {
        "tasks": {"count": TASKS, "classes_per_task": 3},
        "rounds_per_task": ROUNDS_PER_TASK,
    }
    grid = {"continual.learner": ["naive", "joint", "single"]}
    return tables | {"parallel": False, "baseline": {}, "grid": grid}


def learned(cell, protocol, split="global"):
    """Return R[k, k] of every client and task, read off the rows that the cell recorded."""
    rows = [json.loads(line) for line in (cell.folder / "metrics.jsonl").read_text().splitlines()]
    return {
        (row["client"], row["task"]): row["value"]
        for row in rows
        if row["metric"] == f"accuracy_{protocol}" and row["split"] == split and row["client"] is not None
        if row["round"] == (row["task"] + 1) * ROUNDS_PER_TASK
    }


def mean_difference(cell, other, *test):
    """Return how far `cell` is above `other` when a task is learned: over tasks, then over honest clients."""
    ours, theirs = learned(cell, *test), learned(other, *test)
    honest = set(range(CLIENTS)) - poisoned_clients(cell.cell.scenario)
    assert len(honest) == CLIENTS - 1
    drops = [
        sum(ours[client, task] - theirs[client, task] for task in range(TASKS)) / TASKS for client in honest
    ]
    return sum(drops) / len(drops)


def test_reference_metrics_follow_from_recorded_cells(write, stream_tables, tmp_path):
    stream_tables["metrics"] = ["bwt", *RELATIVE, "intransigence_class_incremental"]
    out = tmp_path / "out"
    result = bench(write(stream_tables), out=out)
    cells = {(cell.cell.levels["continual.learner"].label, cell.cell.seed): cell for cell in result.cells}
    runs = {(run.levels[0], run.seed): run.final for run in result.study.runs}
    assert len(cells) == len(runs) == 6
    for (learner, seed), cell in cells.items():
        joint, single = cells["joint", seed], cells["single", seed]
        for test, suffix in (
            (("task_incremental",), "_task_incremental"),
            (("class_incremental",), "_class_incremental"),
            (("task_incremental", "local"), "_local"),
        ):
            final = runs[learner, seed]
            assert final[f"intransigence{suffix}"] == pytest.approx(mean_difference(joint, cell, *test))
            assert final[f"gain_over_single{suffix}"] == pytest.approx(mean_difference(cell, single, *test))
        for name in RELATIVE:
            assert runs[learner, seed][name] == runs[learner, seed][f"{name}_task_incremental"]
    for seed in (1, 2):
        assert runs["joint", seed]["intransigence"] == runs["single", seed]["gain_over_single"] == 0
    assert len({runs["naive", seed][name] for seed in (1, 2) for name in RELATIVE} - {0.0}) > 2

    lines = result.table().splitlines()
    header = next(line for line in lines if line.startswith("| learner"))
    titles = (
        "intransigence (points)",
        "gain over single (points)",
        "intransigence, class-incremental (points)",
    )
    assert all(f"| {title} |" in header for title in titles)
    assert all("–" not in line for line in lines if line.startswith(("| naive", "| joint", "| single")))
    with (out / "cells.csv").open() as file:
        for row in csv.DictReader(file):
            final = runs[row["continual.learner"], int(row["seed"])]
            assert all(float(row[name]) == pytest.approx(final[name]) for name in RELATIVE)


def test_cells_without_references_have_no_reference_metrics(write, stream_tables, tmp_path):
    stream_tables |= {"seeds": 1, "metrics": ["bwt", *RELATIVE]}
    stream_tables["grid"] = {"continual.learner": ["naive", "single"]}
    result = bench(write(stream_tables), out=tmp_path / "out")
    for run in result.study.runs:
        assert "gain_over_single" in run.final
        assert not any(name.startswith("intransigence") for name in run.final)
    table = result.table()
    assert "Not recorded by any run: intransigence." in table
    assert next(line for line in table.splitlines() if line.startswith("| naive")).split(" | ")[3] == "–"
    with (tmp_path / "out" / "cells.csv").open() as file:
        assert [row["intransigence"] for row in csv.DictReader(file)] == ["", ""]


def test_references_are_found_among_named_variants(write, stream_tables, tmp_path):
    """The base's own learner counts, and so do whole tables of variants; other axes are held fixed."""
    tables = stream_tables | {"seeds": 1, "grid": {"training.lr": [0.002, 0.02]}}
    stream = tables["scenario"]["continual"]
    tables["scenario"]["continual"] = stream | {"learner": "joint"}
    tables["variants"] = {
        "method": {
            "all at once": {},
            "in turn": {"continual!": stream, "training.batch_size": 10},
            "alone": {"continual!": stream | {"learner": "single"}},
        }
    }
    result = bench(write(tables), out=tmp_path / "out")
    cells = {tuple(level.label for level in cell.cell.levels.values()): cell for cell in result.cells}
    assert len(cells) == 6
    test = "task_incremental"
    for (rate, method), cell in cells.items():
        joint, single = cells[rate, "all at once"], cells[rate, "alone"]
        assert cell.relative["intransigence"] == pytest.approx(mean_difference(joint, cell, test)), method
        assert cell.relative["gain_over_single"] == pytest.approx(mean_difference(cell, single, test)), method
    one, other = (learned(cells[rate, "all at once"], test) for rate in ("0.002", "0.02"))
    assert one != other


def test_ambiguous_foreign_and_failed_cells_are_no_references(write, stream_tables, tmp_path):
    """Two joint learners leave open which is meant; nothing compares with other tasks or with a failure."""
    tables = stream_tables | {"seeds": 1, "grid": {}}
    joint = {"continual.learner": "joint"}
    tables["variants"] = {
        "method": {
            "naive": {},
            "joint": joint,
            "long": joint | {"training.local_epochs": 2},
            "single elsewhere": {"continual.learner": "single", "continual.tasks.class_order": "shuffled"},
        }
    }
    out = tmp_path / "out"
    path = write(tables)
    result = bench(path, out=out)
    relative = {cell.cell.levels["method"].label: cell.relative for cell in result.cells}
    assert relative["naive"] == relative["joint"] == relative["long"] == {}
    assert relative["single elsewhere"]["gain_over_single"] == 0

    plan = plan_bench(path, out=out)
    two = [
        c for c in collect(plan.cells, plan.runs, {}) if c.cell.levels["method"].label in ("naive", "joint")
    ]
    assert all("intransigence" in cell.relative for cell in add_reference_metrics(two, plan.axes))
    failed = replace(two[1], outcome=CellOutcome("failed"), summary=None)
    assert [cell.relative for cell in add_reference_metrics([two[0], failed], plan.axes)] == [{}, {}]


def test_clients_are_compared_with_themselves_in_the_baseline(write, tables, tmp_path):
    shares = ["share_below_baseline_local", "share_below_baseline_global"]
    result = bench(write(tables | {"parallel": False, "metrics": shares}), out=tmp_path / "out")

    def accuracies(cell, split):
        rows = [json.loads(line) for line in (cell.folder / "metrics.jsonl").read_text().splitlines()]
        return {
            row["client"]: row["value"]
            for row in rows
            if (row["metric"], row["split"], row["round"]) == ("accuracy", split, 2)
            and row["client"] is not None
        }

    cells = {(cell.cell.levels["fusion.strategy"].label, cell.cell.seed): cell for cell in result.cells}
    runs = {(run.levels[0], run.seed): run.final for run in result.study.runs}
    for (strategy, seed), final in runs.items():
        for split in ("local", "global"):
            ours, theirs = accuracies(cells[strategy, seed], split), accuracies(cells["local", seed], split)
            below = sum(ours[client] < theirs[client] for client in theirs) / 3
            assert final[f"share_below_baseline_{split}"] == pytest.approx(below)
    assert "clients below the baseline, local (%)" in result.table()


def test_a_bench_compares_by_other_statistics_than_the_mean(write, tables, tmp_path):
    names = ["accuracy_local_min", "accuracy_local_worst_10", "accuracy_global_jain", "accuracy_local_std"]
    tables |= {"parallel": False, "seeds": 1, "metrics": names}
    result = bench(write(tables), out=tmp_path / "out")
    for cell in result.cells:
        of = cell.summary["final"]["accuracy_local"]
        assert cell.final["accuracy_local_min"] == cell.final["accuracy_local_worst_10"] == of["min"]
        assert cell.final["accuracy_local_std"] == of["std"]
    header = result.table()
    assert "local accuracy after fusion, worst 10 % of clients (%)" in header
    assert "global accuracy after fusion, Jain index over clients" in header


def test_endings_of_unknown_metrics_are_refused(write, tables):
    with pytest.raises(UserError, match="no metric 'accuracy_locl'; did you mean 'accuracy_local'"):
        plan_bench(write(tables | {"metrics": ["accuracy_locl_worst_10"]}))
