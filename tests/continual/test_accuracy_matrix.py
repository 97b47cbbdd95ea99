import numpy as np
import pytest

from fedkd.continual.metrics.matrix import accuracy_matrix, learning_curve
from fedkd.continual.metrics.metrics import learning_area
from fedkd.continual.task_history import TaskHistory
from fedkd.tracking.recorder import Recorder, read_metrics

METRIC = "accuracy_task_incremental"
NAN = np.nan


def row(round, task, value, *, client=4, split="global", metric=METRIC):
    return {
        "round": round,
        "client": client,
        "task": task,
        "split": split,
        "metric": metric,
        "value": value,
    }


# Three tasks of two rounds each: task 0 in rounds 1–2, task 1 in 3–4, task 2 in 5–6.
ROWS = [
    row(0, 0, 0.10), row(0, 1, 0.11), row(0, 2, 0.12),
    row(1, 0, 0.40), row(1, 1, 0.21),
    row(2, 0, 0.90), row(2, 1, 0.31), row(2, 2, 0.22),
    row(3, 0, 0.85), row(3, 1, 0.50),
    row(4, 0, 0.80), row(4, 1, 0.70), row(4, 2, 0.32),
    row(5, 2, 0.45),
    row(6, 0, 0.75), row(6, 1, 0.65), row(6, 2, 0.60),
]  # fmt: skip
OTHERS = [
    row(2, 0, 0.01, client=3),
    row(2, 0, 0.02, client=None),
    row(2, 0, 0.03, split="local"),
    row(2, 0, 0.04, metric="accuracy_class_incremental"),
    row(2, None, 0.05),
]
LESSONS = TaskHistory(tasks=(0, 1, 2), firsts=(1, 3, 5), ends=(2, 4, 6))
PLACE = {"metric": METRIC, "split": "global", "client": 4}


def test_matrix_rows_are_round_0_and_the_last_round_of_each_task():
    R, b = accuracy_matrix([*OTHERS, *ROWS], LESSONS, **PLACE)
    np.testing.assert_array_equal(R, [[0.90, 0.31, 0.22], [0.80, 0.70, 0.32], [0.75, 0.65, 0.60]])
    np.testing.assert_array_equal(b, [0.10, 0.11, 0.12])
    assert R.dtype == b.dtype == np.float64


def test_order_of_the_rows_does_not_matter():
    forward = accuracy_matrix(ROWS, LESSONS, **PLACE)
    backward = accuracy_matrix(ROWS[::-1], LESSONS, **PLACE)
    np.testing.assert_array_equal(forward[0], backward[0])
    np.testing.assert_array_equal(forward[1], backward[1])


def test_each_client_split_and_metric_has_its_own_matrix():
    def first(**place):
        return accuracy_matrix([*ROWS, *OTHERS], LESSONS, **PLACE | place)[0][0, 0]

    assert first(client=3) == 0.01
    assert first(client=None) == 0.02
    assert first(split="local") == 0.03
    assert first(metric="accuracy_class_incremental") == 0.04


def test_unmeasured_cells_are_nan():
    # Nothing in round 0, a null in round 4, and stopped before task 2 was learned.
    rows = [row(2, 0, 0.9), row(4, 0, None), row(4, 1, 0.7)]
    R, b = accuracy_matrix(rows, LESSONS, **PLACE)
    np.testing.assert_array_equal(R, [[0.9, NAN, NAN], [NAN, 0.7, NAN], [NAN, NAN, NAN]])
    np.testing.assert_array_equal(b, [NAN, NAN, NAN])


def test_rounds_after_the_stream_are_ignored():
    R, _ = accuracy_matrix([row(1, 0, 0.9), row(2, 0, 0.1)], TaskHistory((0,), (1,), (1,)), **PLACE)
    np.testing.assert_array_equal(R, [[0.9]])


@pytest.mark.parametrize(
    ("task", "expected"), [(0, [0.10, 0.40, 0.90]), (1, [0.31, 0.50, 0.70]), (2, [0.32, 0.45, 0.60])]
)
def test_a_curve_spans_the_rounds_of_its_task(task, expected):
    curve = learning_curve([*OTHERS, *ROWS], LESSONS, **PLACE, place=task)
    np.testing.assert_array_equal(curve, expected)
    R, _ = accuracy_matrix(ROWS, LESSONS, **PLACE)
    assert curve[-1] == R[task, task]


def test_curve_of_a_run_evaluated_every_second_round():
    rows = [row(0, 0, 0.0), row(2, 0, 0.5), row(4, 0, 1.0)]
    curve = learning_curve(rows, TaskHistory((0,), (1,), (4,)), **PLACE, place=0)
    np.testing.assert_array_equal(curve, [0.0, NAN, 0.5, NAN, 1.0])
    assert np.isnan(learning_area(curve))
    assert learning_area(curve[::2]) == 0.5


def test_rows_of_a_run_folder_give_a_matrix(tmp_path):
    with Recorder(tmp_path) as recorder:
        for r in [*ROWS, *OTHERS]:
            place = {name: r[name] for name in ("round", "client", "split", "task")}
            recorder.metric(r["metric"], r["value"], **place)
        recorder.metric(METRIC, NAN, round=5, client=4, split="global", task=1)
    rows = read_metrics(tmp_path)
    R, b = accuracy_matrix(rows, LESSONS, **PLACE)
    expected = accuracy_matrix(ROWS, LESSONS, **PLACE)
    np.testing.assert_array_equal(R, expected[0])
    np.testing.assert_array_equal(b, expected[1])


def test_value_recorded_twice_is_refused():
    rows = [*ROWS, row(4, 1, 0.70)]
    with pytest.raises(ValueError, match=r"task 1 is recorded twice in round 4 \(global\)"):
        accuracy_matrix(rows, LESSONS, **PLACE)
    with pytest.raises(ValueError, match="recorded twice"):
        learning_curve(rows, LESSONS, **PLACE, place=1)


def test_a_matrix_follows_the_clients_task_order():
    # Task 2 in rounds 2–4, task 0 in 5–6; task 1 is none of this client's.
    history = TaskHistory.of([(2, 2, 4), (0, 5, 6)])
    R, b = accuracy_matrix(ROWS, history, **PLACE)
    np.testing.assert_array_equal(R, [[0.32, 0.80], [0.60, 0.75]])
    np.testing.assert_array_equal(b, [0.12, 0.10])
    curve = learning_curve(ROWS, history, **PLACE, place=0)
    np.testing.assert_array_equal(curve, [NAN, 0.22, NAN, 0.32])
    assert history.place(2) == 0 and history.place(1) == -1


def test_a_returning_task_has_one_row_and_the_last_row_is_the_end():
    assert TaskHistory.of([(1, 1, 2), (0, 3, 4), (1, 5, 5), (0, 6, 9)]) == TaskHistory((1, 0), (1, 3), (2, 9))


def test_a_task_outside_the_clients_order_is_refused():
    with pytest.raises(ValueError, match=r"place must be in 0\.\.2, got 3"):
        learning_curve(ROWS, LESSONS, **PLACE, place=3)
