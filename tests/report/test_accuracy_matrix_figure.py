"""The files that a run over a stream of tasks leaves: exact tables, and a figure of both protocols."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from fedkd.continual.metrics.metrics import summarise
from fedkd.continual.metrics.outcome import ProtocolOutcome, StreamOutcome
from fedkd.continual.task_history import TaskHistory
from fedkd.report.continual import accuracy_matrix, matrix_csv, metrics_csv, write_continual
from fedkd.report.metrics import find_metric
from fedkd.report.style import MOST_NUMBERS, draw_chart

nan = np.nan
R = np.array([[0.9, 0.5], [0.25, 0.75]])
b = np.array([0.5, 0.375])


def outcome_of(R, b) -> StreamOutcome:
    """Two clients, the second at half the first's accuracies; without the task half of those again."""
    tests = []
    for protocol, share in (("task_incremental", 1.0), ("class_incremental", 0.5)):
        for split in ("local", "global"):
            clients = {0: (share * R, share * b), 1: (0.5 * share * R, 0.5 * share * b)}
            metrics = {client: summarise(*pair) for client, pair in clients.items()}
            mean = (0.75 * share * R, 0.75 * share * b)
            tests.append(ProtocolOutcome(protocol, split, *mean, clients, metrics))
    histories = (TaskHistory.of([(task, task + 1, task + 1) for task in range(len(R))]),) * 2
    counted = frozenset({0, 1})
    return StreamOutcome(len(R), "task_incremental", tuple(tests), {}, counted, histories, in_step=True)


def triangle(tasks: int):
    """Accuracies on tasks learned and on the next one."""
    values = np.linspace(0.1, 0.9, tasks * tasks).reshape(tasks, tasks)
    values[np.triu_indices(tasks, 2)] = nan
    return values, np.full(tasks, 0.1)


def test_the_matrix_as_csv_is_exact():
    unmeasured = R.copy()
    unmeasured[0, 1] = nan
    lines = matrix_csv(outcome_of(unmeasured, b)).splitlines()
    assert lines[0] == "protocol,split,client,after_task,task,accuracy"
    assert lines[1:12] == [
        "task_incremental,local,,,0,0.375",
        "task_incremental,local,,,1,0.28125",
        "task_incremental,local,,0,0,0.675",
        "task_incremental,local,,1,0,0.1875",
        "task_incremental,local,,1,1,0.5625",
        "task_incremental,local,0,,0,0.5",
        "task_incremental,local,0,,1,0.375",
        "task_incremental,local,0,0,0,0.9",
        "task_incremental,local,0,1,0,0.25",
        "task_incremental,local,0,1,1,0.75",
        "task_incremental,local,1,,0,0.25",
    ]
    assert len(lines) == 1 + 4 * 3 * 5


def test_the_csv_has_the_metrics_of_every_client():
    rows = list(csv.DictReader(io.StringIO(metrics_csv(outcome_of(R, b)))))
    found = {(r["protocol"], r["split"], r["client"], r["metric"]): r["value"] for r in rows}
    assert float(found["task_incremental", "global", "0", "average_accuracy"]) == 0.5
    assert float(found["class_incremental", "local", "1", "average_accuracy"]) == 0.125
    alone = csv.DictReader(io.StringIO(metrics_csv(outcome_of(R[:1, :1], b[:1]))))
    assert {r["value"] for r in alone if r["metric"] == "bwt"} == {""}


def test_the_figure_shows_both_protocols_from_round_0_on():
    figure = draw_chart(accuracy_matrix(outcome_of(R, b), ["0 1", "2 3"]))
    left, right, _bar = figure.axes
    assert left.get_title() == "task-incremental\naverage accuracy 37.5 %\nBWT -48.8 points"
    assert right.get_title() == "class-incremental\naverage accuracy 18.8 %\nBWT -24.4 points"
    np.testing.assert_allclose(left.images[0].get_array(), 75.0 * np.vstack([b, R]))
    np.testing.assert_allclose(right.images[0].get_array(), 37.5 * np.vstack([b, R]))
    assert [label.get_text() for label in left.get_xticklabels()] == ["0 1", "2 3"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["untrained", "0 1", "2 3"]
    assert [text.get_text() for text in left.texts] == ["38", "28", "68", "38", "19", "56"]
    marked = [patch.get_xy() for patch in left.patches if isinstance(patch, Rectangle)]
    assert marked == [(-0.5, 0.5), (0.5, 1.5)]


def test_unmeasured_cells_stay_empty():
    figure = draw_chart(accuracy_matrix(outcome_of(*triangle(3))))
    (missing,) = np.argwhere(np.isnan(figure.axes[0].images[0].get_array().filled(nan)))
    assert missing.tolist() == [1, 2]
    assert len(figure.axes[0].texts) == 4 * 3 - 1


@pytest.mark.parametrize(("tasks", "numbered"), [(MOST_NUMBERS, True), (MOST_NUMBERS + 1, False)])
def test_many_tasks_are_drawn_without_numbers(tasks, numbered):
    axes = draw_chart(accuracy_matrix(outcome_of(*triangle(tasks)))).axes[0]
    assert bool(axes.texts) == numbered
    assert len(axes.get_xticks()) <= MOST_NUMBERS


@pytest.mark.parametrize("tasks", [1, 14])
def test_the_files_are_written_with_the_same_bytes_twice(tasks, tmp_path):
    names = [f"a task with a very long name {task}" for task in range(tasks)]
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        write_continual(outcome_of(*triangle(tasks)), folder, names)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == [
        "accuracy_matrix.csv",
        "accuracy_matrix.pdf",
        "accuracy_matrix.png",
        "accuracy_matrix.svg",
        "continual_metrics.csv",
    ]
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert (tmp_path / "first" / "accuracy_matrix.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_figure_keeps_the_previous_file(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    write_continual(outcome_of(R, b), tmp_path)
    before = (tmp_path / "accuracy_matrix.png").read_bytes()

    def fail(self, file, **options):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        write_continual(outcome_of(R, b), tmp_path)
    assert (tmp_path / "accuracy_matrix.png").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "label", "better"),
    [
        ("average_accuracy", "average accuracy (%)", "higher"),
        ("bwt_class_incremental", "BWT, class-incremental (points)", "higher"),
        ("forgetting_local", "forgetting, local (points)", "lower"),
        ("forgetting_first_last_local", "forgetting, first − last, local (points)", "lower"),
        ("stored_bytes_per_task", "stored per task (kB)", "lower"),
        ("accuracy_local", "local accuracy after fusion (%)", "higher"),
    ],
)
def test_continual_metrics_have_titles_and_a_direction(name, label, better):
    assert (find_metric(name).label, find_metric(name).better, find_metric(name).name) == (
        label,
        better,
        name,
    )


def test_individual_orders_are_shown_by_task_and_by_position():
    own = (TaskHistory.of([(2, 1, 1), (0, 2, 2)]), TaskHistory.of([(0, 1, 1), (1, 2, 2)]))
    outcome = replace(outcome_of(R, b), histories=own, in_step=False)
    rows = list(csv.DictReader(io.StringIO(matrix_csv(outcome))))
    assert {row["client"] for row in rows} == {"0", "1"}
    first = [row for row in rows if row["client"] == "0" and row["protocol"] == "task_incremental"]
    assert [(row["after_task"], row["task"]) for row in first[:6]] == [
        ("", "2"), ("", "0"), ("2", "2"), ("2", "0"), ("0", "2"), ("0", "0"),
    ]  # fmt: skip
    figure = draw_chart(accuracy_matrix(outcome, ["zero", "one", "two"]))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "2"]
    assert "own order" in figure._supylabel.get_text()
