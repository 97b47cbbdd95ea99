"""What a run over a stream of tasks shows while it works."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fedkd.scenario.schema import Fusion, Scenario
from fedkd.tracking.events import RoundReport, RunReport
from fedkd.tracking.live import LiveProgress
from fedkd.tracking.progress import PlainProgress
from fedkd.tracking.task_matrix import TaskMatrix

FOLDER = Path("runs/stream-4")
GIVEN = [[1.0, 0.5, None], [0.75, 0.875, 0.25], [0.625, 0.5, 1.0]]
"""Accuracy on each task after each, the task given."""


def scenario_of(tasks: int = 3, head: str = "task") -> Scenario:
    continual = {"tasks": {"count": tasks}, "head": head, "rounds_per_task": 2}
    tables = {"name": "stream", "seed": 4, "rounds": 2 * tasks, "continual": continual}
    return Scenario.model_validate({**tables, "data": {"clients": 3}})


def report(round: int, accuracies=None, tasks: int = 3, **changes) -> RoundReport:
    """Return a round's report; without the task accuracies are half as high."""
    metrics = {}
    for task, value in enumerate(accuracies or []):
        if value is not None:
            metrics[f"accuracy_task_incremental/global/{task}"] = value
            metrics[f"accuracy_class_incremental/global/{task}"] = value / 2
            metrics[f"accuracy_task_incremental/local/{task}"] = 0.0
    return RoundReport(
        round=round, rounds=2 * tasks, metrics=metrics, task=(round - 1) // 2, seconds=1.0, **changes
    )


def reports(matrix=GIVEN, rounds: int = 6) -> list[RoundReport]:
    """Return rounds of which every second one ends a task; those between measured a little less."""
    found = []
    for round in range(1, rounds + 1):
        row = matrix[(round - 1) // 2]
        shown = row if round % 2 == 0 else [None if value is None else value / 2 for value in row]
        found.append(report(round, shown, tasks=len(matrix)))
    return found


def display(scenario, played, *, width=100, height=60, folder=FOLDER, resumed_from=0) -> list[str]:
    options = {"width": width, "height": height, "color_system": None}
    progress = LiveProgress(
        Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "xterm"}, **options)
    )
    with progress:
        progress.run_started(scenario, folder, resumed_from)
        for one in played:
            progress.round_finished(one)
        out = io.StringIO()
        Console(file=out, **options).print(progress._display())
    return out.getvalue().splitlines()


def matrix_lines(lines: list[str]) -> list[str]:
    start = next(number for number, line in enumerate(lines) if line.startswith("on task"))
    return [" ".join(line.split()) for line in lines[start : lines.index("", start)]]


# The matrix -------------------------------------------------------------------------------------------


def test_the_row_of_a_task_shows_its_last_evaluated_round():
    matrix = TaskMatrix(scenario_of())
    assert matrix.so_far() == {}
    for one in reports(rounds=3):
        assert matrix.add(one)
    assert matrix.rows() == {0: [1.0, 0.5, None], 1: [0.375, 0.4375, 0.125]}
    assert not matrix.add(report(4))
    for one in reports():
        matrix.add(one)
    assert list(matrix.rows().values()) == GIVEN
    assert matrix.so_far() == pytest.approx({"average_accuracy": 2.125 / 3, "bwt": -0.375})


def test_individual_orders_show_no_mean_backward_transfer():
    scenario = scenario_of()
    shy = scenario.model_copy(update={"clients_per_round": 1})  # 3 clients, 2 rounds a task
    averaged = shy.model_copy(update={"fusion": Fusion(strategy="flwr:FedAvg")})
    for one, names in (
        (scenario, ["average_accuracy", "bwt"]),
        (shy, ["average_accuracy"]),
        (averaged, None),
    ):
        matrix = TaskMatrix(one)
        for played in reports():
            matrix.add(played)
        assert list(matrix.so_far()) == (names or ["average_accuracy", "bwt"])


def test_the_display_uses_the_scenarios_protocol():
    matrix = TaskMatrix(scenario_of(head="class"))
    matrix.add(reports()[1])
    assert (matrix.protocol, matrix.rows()) == ("class_incremental", {0: [0.5, 0.25, None]})


def test_the_display_includes_records_before_a_resume():
    def row(round, task, value, **changes):
        known = {"client": None, "split": "global", "metric": "accuracy_task_incremental"}
        return {"round": round, "task": task, "value": value, **known, **changes}

    rows = [row(0, 0, 0.1), row(1, 0, 0.5), row(2, 0, 0.9), row(2, 1, None), row(3, 1, 0.3)]
    rows += [row(2, 0, 0.0, client=1), row(2, 0, 0.0, split="local"), row(2, 0, 0.0, metric="other")]
    matrix = TaskMatrix(scenario_of())
    matrix.recall(rows)
    assert matrix.rows() == {0: [0.9, None, None], 1: [None, 0.3, None]}


# The terminal -----------------------------------------------------------------------------------------


def test_the_live_matrix_grows_by_one_row_per_task():
    assert matrix_lines(display(scenario_of(), reports(rounds=2))) == ["on task 1 2 3", "after 1 100.0 50.0"]
    lines = display(scenario_of(), reports())
    assert matrix_lines(lines) == [
        "on task 1 2 3",
        "after 1 100.0 50.0",
        "after 2 75.0 87.5 25.0",
        "after 3 62.5 50.0 100.0",
    ]
    assert "task-incremental accuracy (%) on common test sets" in lines
    (row,) = [line for line in lines if "5/6" in line]
    assert row.split()[:2] == ["5/6", "3/3"]


def test_the_bar_names_the_task():
    lines = display(scenario_of(), reports(rounds=2))
    assert "round 3/6 · task 2/3 · " in lines[-1]


def test_the_last_tasks_that_fit_are_shown():
    matrix = [
        [(task + 1) / 100 if task <= learned + 1 else None for task in range(15)] for learned in range(15)
    ]
    lines = display(scenario_of(15), reports(matrix, rounds=26), width=60)
    shown = matrix_lines(lines)
    assert shown[0] == "on task 7 8 9 10 11 12 13"
    assert shown[-1] == "after 13 7.0 8.0 9.0 10.0 11.0 12.0 13.0"
    assert len(shown) == 11
    early = matrix_lines(display(scenario_of(15), reports(matrix, rounds=2), width=60))
    assert early[0] == "on task 1 2 3 4 5 6 7"


@pytest.mark.parametrize("height", [8, 12, 16, 24, 60])
def test_both_tables_and_the_bar_fit_the_terminal(height):
    matrix = [[1.0] * 15 for _ in range(15)]
    played = [report(r.round, matrix[0], 15, bytes_up=999_900_000) for r in reports(matrix, rounds=29)]
    for width in (80, 90, 100):
        lines = display(scenario_of(15), played, width=width, height=height)
        assert len(lines) <= max(height, 9)
        assert not any("…" in line for line in lines)
        assert max(map(len, lines)) <= width


def test_a_resumed_display_shows_earlier_rows(tmp_path):
    rows = [
        {"round": 2, "client": None, "task": task, "split": "global", "metric": name, "value": 0.5}
        for task in (0, 1)
        for name in ("accuracy_task_incremental", "accuracy_class_incremental")
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = display(scenario_of(), reports()[2:4], folder=tmp_path, resumed_from=2)
    assert matrix_lines(lines)[1:] == ["after 1 50.0 50.0", "after 2 75.0 87.5 25.0"]


# Plain lines ------------------------------------------------------------------------------------------


def over(mean: float, worst: float | None = None, n: int = 3) -> dict[str, float]:
    other = mean if worst is None else worst
    return {"mean": mean, "std": abs(mean - other), "min": other, "max": mean, "worst": other, "n": n}


CONTINUAL = {
    "tasks": 3,
    "evaluation": "task_incremental",
    "average_accuracy": over(0.708),
    "average_accuracy_task_incremental": over(0.708, 0.61),
    "average_accuracy_class_incremental": over(0.354),
    "average_accuracy_local": over(0.5),
    "bwt_task_incremental": over(-0.375, -0.4),
    "bwt_class_incremental": None,
    "forgetting_task_incremental": over(0.375, 0.4, n=2),
    "forgetting_class_incremental": over(0.1, n=1),
    "stored_bytes_per_task": over(12_300.0),
    "peak_bytes": over(80_000.0),
}


def finished(continual) -> RunReport:
    final = {"accuracy_local": over(0.5), "accuracy_global": over(0.7), "bytes_up": 0, "bytes_down": 0}
    return RunReport(FOLDER, {"rounds": 6, "final": final, "continual": continual, "seconds": 6.0})


def test_plain_lines_name_the_task_and_end_it_with_its_row():
    out = io.StringIO()
    progress = PlainProgress(out)
    progress.run_started(scenario_of(), FOLDER, 0)
    for one in reports(rounds=4):
        progress.round_finished(one)
    progress.run_finished(finished(CONTINUAL))
    lines = out.getvalue().splitlines()
    assert lines[0] == "stream: knfu, 3 clients, naive on 3 tasks, 6 rounds, seed 4 → runs/stream-4"
    assert lines[1].startswith("round  1/6  task 1/3  local ")
    assert lines[3] == "end of task 1/3, task-incremental accuracy (%) on task 1:  100.0"
    assert lines[4].startswith("round  3/6  task 2/3  local ")
    assert lines[6] == "end of task 2/3, task-incremental accuracy (%) on tasks 1–2:  75.0  87.5"
    assert lines[lines.index("results          runs/stream-4") + 3 : -2] == [
        "3 tasks          task-incremental                           class-incremental",
        "avg. accuracy    70.8 % (worst 61.0 %)                      35.4 %",
        "BWT              -37.5 pt (worst -40.0 pt)                  –",
        "forgetting       +37.5 pt (worst +40.0 pt, 2 of 3 clients)  +10.0 pt (1 of 3 clients)",
        "stored           12.3 kB per task and client, at most 80.0 kB",
    ]


def test_a_drop_with_a_given_task_gives_a_warning():
    out = io.StringIO()
    PlainProgress(out).run_finished(finished(CONTINUAL))
    assert "broken" not in out.getvalue()
    upside_down = CONTINUAL | {"average_accuracy_class_incremental": over(0.71)}
    PlainProgress(out).run_finished(finished(upside_down))
    assert "warning: accuracy is lower with the task given than without it" in out.getvalue()


def test_a_line_ends_with_the_last_ten_tasks():
    matrix = [[(task + 1) / 100 for task in range(15)] for _ in range(15)]
    out = io.StringIO()
    progress = PlainProgress(out)
    progress.run_started(scenario_of(15), FOLDER, 0)
    for one in reports(matrix, rounds=24):
        progress.round_finished(one)
    *_, last = out.getvalue().splitlines()
    assert last.endswith("on tasks 3–12:  3.0  4.0  5.0  6.0  7.0  8.0  9.0  10.0  11.0  12.0")
    assert "task  9/15" in out.getvalue()
