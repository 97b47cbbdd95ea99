import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedkd.continual.metrics import metrics

# The worked example. Every expected value below is worked out on paper, in the comment beside it.
R = np.array(
    [
        # task 0  1     2     3
        [0.90, 0.30, 0.65, 0.10],  # after task 0
        [0.81, 0.70, 0.40, 0.20],  # after task 1
        [0.83, 0.82, 0.60, 0.30],  # after task 2
        [0.70, 0.76, 0.50, 0.80],  # after task 3
    ]
)
B = np.array([0.10, 0.20, 0.10, 0.40])
SINGLE = np.array([0.85, 0.74, 0.50, 0.83])
JOINT = np.array([0.95, 0.80, 0.75, 0.78])
CURVES = [[0.10, 0.80, 0.90], [0.30, 0.56, 0.70], [0.40, 0.50, 0.60], [0.30, 0.70, 0.80]]
AREAS = [0.60, 0.52, 0.50, 0.60]

WORKED = {
    # (0.70 + 0.76 + 0.50 + 0.80) / 4 = 2.76 / 4
    "average_accuracy": 0.69,
    # rows: 0.90; (0.81 + 0.70) / 2 = 0.755; (0.83 + 0.82 + 0.60) / 3 = 2.25 / 3 = 0.75; 0.69; 3.095 / 4
    "average_incremental_accuracy": 0.77375,
    # 0.70 − 0.90 = −0.20; 0.76 − 0.70 = +0.06; 0.50 − 0.60 = −0.10; −0.24 / 3
    "bwt": -0.08,
    # 0.30 − 0.20 = 0.10; 0.40 − 0.10 = 0.30; 0.30 − 0.40 = −0.10; 0.30 / 3
    "fwt": 0.10,
    # 0.90 − 0.85 = 0.05; 0.70 − 0.74 = −0.04; 0.60 − 0.50 = 0.10; 0.80 − 0.83 = −0.03; 0.08 / 4
    "gain_over_single": 0.02,
    # areas 1.80 / 3 = 0.60; 1.56 / 3 = 0.52; 1.50 / 3 = 0.50; 1.80 / 3 = 0.60; 2.22 / 4
    "learning_area": 0.555,
    # 90 % of 0.90 is 0.81, first reached at 2; of 0.70: 0.63, at 2; of 0.60: 0.54, at 2; of 0.80: 0.72, at 2
    "epochs_to_90": 2.0,
    # task 0: best 0.90, drop 0.20; task 1: best 0.82 (after task 2), drop 0.06; task 2: best 0.60
    # (0.65 was before it was learned), drop 0.10; 0.36 / 3
    "forgetting": 0.12,
    # 0.20 − 0.06 + 0.10 = 0.24; 0.24 / 3
    "forgetting_first_last": 0.08,
    # 0.95 − 0.90 = 0.05; 0.80 − 0.70 = 0.10; 0.75 − 0.60 = 0.15; 0.78 − 0.80 = −0.02; 0.28 / 4
    "intransigence": 0.07,
    # task 0: drops 0.09, 0.07, 0.20, mean 0.12; task 1: −0.12, −0.06, mean −0.09; task 2: 0.10; 0.13 / 3
    "nbt": 0.0433333333333333,
    # task 0: (0.60 + 0.81 + 0.83 + 0.70) / 4 = 2.94 / 4 = 0.735; task 1: (0.52 + 0.82 + 0.76) / 3 = 0.70;
    # task 2: (0.50 + 0.50) / 2 = 0.50; task 3: 0.60 / 1; 2.535 / 4
    "auc": 0.63375,
}
CALLS = {
    "average_accuracy": metrics.average_accuracy,
    "average_incremental_accuracy": metrics.average_incremental_accuracy,
    "bwt": metrics.bwt,
    "fwt": lambda r: metrics.fwt(r, B[: len(r)]),
    "gain_over_single": lambda r: metrics.gain_over_single(r, SINGLE[: len(r)]),
    "forgetting": metrics.forgetting,
    "forgetting_first_last": metrics.forgetting_first_last,
    "intransigence": lambda r: metrics.intransigence(r, JOINT[: len(r)]),
    "nbt": metrics.nbt,
    "auc": lambda r: metrics.auc(r, AREAS[: len(r)]),
}
# The same where task 1 was not learned: what comes of L = {0, 2, 3}.
WITHOUT_THE_SECOND = {
    "average_accuracy": 0.69,
    "average_incremental_accuracy": 0.77375,
    # −0.20; −0.10; −0.30 / 2
    "bwt": -0.15,
    # all three follow task 0
    "fwt": 0.10,
    # 0.05 + 0.10 − 0.03 = 0.12; 0.12 / 3
    "gain_over_single": 0.04,
    # 0.60 + 0.50 + 0.60 = 1.70; 1.70 / 3
    "learning_area": 1.7 / 3,
    "epochs_to_90": 2.0,
    # 0.20; 0.10; 0.30 / 2
    "forgetting": 0.15,
    "forgetting_first_last": 0.15,
    # 0.05 + 0.15 − 0.02 = 0.18; 0.18 / 3
    "intransigence": 0.06,
    # 0.12; 0.10; 0.22 / 2
    "nbt": 0.11,
    # 0.735 + 0.50 + 0.60 = 1.835; 1.835 / 3
    "auc": 1.835 / 3,
}
# The entries each formula reads, for T = 4; ``x`` is read.
NEEDED = {
    "average_accuracy": ".... .... .... xxxx",
    "average_incremental_accuracy": "x... xx.. xxx. xxxx",
    "bwt": "x... .x.. ..x. xxx.",
    "fwt": ".x.. ..x. ...x ....",
    "gain_over_single": "x... .x.. ..x. ...x",
    "forgetting": "x... xx.. xxx. xxx.",
    "forgetting_first_last": "x... .x.. ..x. xxx.",
    "intransigence": "x... .x.. ..x. ...x",
    "nbt": "x... xx.. xxx. xxx.",
    "auc": ".... x... xx.. xxx.",
}


CLOSE = {"rtol": 0.0, "atol": 1e-14}


def close(value):
    return pytest.approx(value, rel=CLOSE["rtol"], abs=CLOSE["atol"])


@pytest.mark.parametrize("name", CALLS)
def test_metrics_match_the_worked_example(name):
    value = CALLS[name](R)
    assert isinstance(value, float)
    assert value == close(WORKED[name])


def test_per_task_values_match_the_worked_example():
    np.testing.assert_allclose(metrics.intransigence_per_task(R, JOINT), [0.05, 0.10, 0.15, -0.02], **CLOSE)
    np.testing.assert_allclose(metrics.nbt_per_task(R), [0.12, -0.09, 0.10], **CLOSE)
    np.testing.assert_allclose(metrics.auc_per_task(R, AREAS), [0.735, 0.70, 0.50, 0.60], **CLOSE)
    assert [metrics.learning_area(curve) for curve in CURVES] == [close(area) for area in AREAS]


def test_summary_lists_metrics_in_the_documented_order():
    summary = metrics.summarise(R, B, single=SINGLE, joint=JOINT, curves=CURVES)
    assert list(summary) == list(WORKED)
    assert summary == {name: close(value) for name, value in WORKED.items()}


def test_unlearned_tasks_enter_no_comparison():
    given = {"b": B, "single": SINGLE, "joint": JOINT, "curves": CURVES}
    learned = [True, False, True, True]
    found = metrics.summarise(R, **given, learned=learned)
    assert found == {name: close(value) for name, value in WITHOUT_THE_SECOND.items()}
    # Nor is it asked what the accuracy on it was, unless tasks that were learned need it.
    unknown = R.copy()
    unknown[1, 1] = np.nan
    assert metrics.bwt(unknown, learned) == close(WITHOUT_THE_SECOND["bwt"])
    assert math.isnan(metrics.bwt(unknown))


def test_transfer_starts_at_the_first_learned_task():
    late = [False, False, True, True]
    assert metrics.fwt(R, B, late) == close(-0.1)  # on task 3 alone
    assert metrics.bwt(R, late) == close(-0.1)
    for nothing in ([False] * 4, [False, False, False, True]):
        assert math.isnan(metrics.fwt(R, B, nothing)) and math.isnan(metrics.bwt(R, nothing))


@pytest.mark.parametrize("learned", [[True] * 3, [1, 0, 1, 1], [[True] * 4]])
def test_learned_tasks_are_one_bool_each(learned):
    with pytest.raises(ValueError, match="learned must be"):
        metrics.bwt(R, learned)


@pytest.mark.parametrize(
    ("given_too", "adds"),
    [
        ({}, set()),
        ({"b": B}, {"fwt"}),
        ({"single": SINGLE}, {"gain_over_single"}),
        ({"joint": JOINT}, {"intransigence"}),
        ({"curves": CURVES}, {"learning_area", "epochs_to_90", "auc"}),
    ],
)
def test_summary_omits_metrics_without_inputs(given_too, adds):
    always = {"average_accuracy", "average_incremental_accuracy", "bwt"}
    always |= {"forgetting", "forgetting_first_last", "nbt"}
    summary = metrics.summarise(R, **given_too)
    assert list(summary) == [name for name in WORKED if name in always | adds]
    assert summary == {name: close(WORKED[name]) for name in summary}


def test_one_task_has_nan_transfer_and_forgetting():
    summary = metrics.summarise([[0.9]], [0.1], single=[0.8], joint=[0.95], curves=[[0.1, 0.5, 0.9]])
    nothing = {"bwt", "fwt", "forgetting", "forgetting_first_last", "nbt"}
    assert {name for name, value in summary.items() if math.isnan(value)} == nothing
    assert {name: value for name, value in summary.items() if name not in nothing} == {
        "average_accuracy": 0.9,
        "average_incremental_accuracy": 0.9,
        "gain_over_single": close(0.1),  # 0.9 − 0.8
        "learning_area": close(0.5),  # (0.1 + 0.5 + 0.9) / 3
        "epochs_to_90": 2.0,  # 0.5 < 0.81
        "intransigence": close(0.05),  # 0.95 − 0.9
        "auc": close(0.5),  # the task's own area / 1
    }
    assert metrics.nbt_per_task([[0.9]]).shape == (0,)


@pytest.mark.filterwarnings("error")
def test_one_task_raises_no_warning():
    metrics.summarise([[0.9]], [0.1])


def test_forgetting_is_negative_after_backward_improvement():
    # 0.5 after task 0, 0.7 after task 1, 0.8 at the end: best 0.7; task 1: 0.6, then 0.9; (−0.1 − 0.3) / 2
    assert metrics.forgetting([[0.5, 0.0, 0.0], [0.7, 0.6, 0.0], [0.8, 0.9, 0.5]]) == close(-0.2)


def test_learning_area_weighs_all_epochs_equally():
    assert metrics.learning_area([0.0, 0.0, 0.0, 1.0]) == 0.25  # the trapezium rule says 1/6
    assert metrics.learning_area([0.0, 1.0, 1.0, 1.0]) == 0.75  # learned earlier
    assert metrics.learning_area([0.0, 1.0, 0.0, 0.0]) == 0.25  # not held at its best


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([0.5, 0.8, 0.91, 1.0], 2.0),
        ([50.0, 80.0, 91.0, 100.0], 2.0),  # per cent
        ([0.95, 0.2, 1.0], 0.0),  # there before the first step
        ([0.2, 0.9, 0.4, 0.8], 1.0),  # first reached, if lost again
        ([0.1, 0.9, 1.0], 1.0),  # 90 % exactly
        ([0.0, 0.0], 0.0),  # what never learns anything is done at once
        ([0.7], 0.0),
    ],
)
def test_epochs_to_90_match_the_formula(curve, expected):
    assert metrics.epochs_to_90(curve) == expected


def test_epochs_to_90_needs_every_epoch():
    assert math.isnan(metrics.epochs_to_90([0.1, float("nan"), 0.9]))
    with pytest.raises(ValueError, match="curve must have shape"):
        metrics.epochs_to_90([])


@pytest.mark.parametrize("name", NEEDED)
def test_unmeasured_entries_affect_only_formulas_that_read_them(name):
    needed = [[mark == "x" for mark in row] for row in NEEDED[name].split()]
    for i in range(4):
        for j in range(4):
            holed = R.copy()
            holed[i, j] = np.nan
            value = CALLS[name](holed)
            if needed[i][j]:
                assert math.isnan(value), (i, j)
            else:
                assert value == CALLS[name](R), (i, j)


def test_unmeasured_reference_accuracy_makes_the_mean_nan():
    holed = np.array([np.nan, 0.2, 0.3, 0.4])
    assert metrics.fwt(R, holed) == metrics.fwt(R, [0.0, 0.2, 0.3, 0.4])  # the first task has no transfer
    assert math.isnan(metrics.fwt(R, holed[::-1]))
    assert math.isnan(metrics.gain_over_single(R, holed))
    assert math.isnan(metrics.intransigence(R, holed))
    assert math.isnan(metrics.auc(R, holed))
    assert math.isnan(metrics.learning_area(holed))


@pytest.mark.parametrize("name", CALLS)
def test_matrix_that_is_not_square_is_refused(name):
    for matrix in ([], [[]], [0.5], [[0.5, 0.6]], [[[0.5]]]):
        with pytest.raises(ValueError, match=r"R must have shape \[T, T\]"):
            CALLS[name](matrix)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: metrics.fwt(R, B[:3]), "b must have shape"),
        (lambda: metrics.fwt(R, 0.1), "b must have shape"),
        (lambda: metrics.gain_over_single(R, SINGLE[:1]), "single must have shape"),
        (lambda: metrics.intransigence(R, JOINT[None]), "joint must have shape"),
        (lambda: metrics.auc(R, AREAS[:3]), "learning_areas must have shape"),
        (lambda: metrics.summarise(R, curves=CURVES[:3]), "curves must have shape"),
        (lambda: metrics.learning_area([]), "curve must have shape"),
        (lambda: metrics.learning_area(CURVES), "curve must have shape"),
    ],
)
def test_arguments_of_wrong_shape_are_refused(call, what):
    with pytest.raises(ValueError, match=what):
        call()


def test_float32_inputs_are_computed_in_float64():
    narrow = R.astype(np.float32)
    wide = narrow.astype(np.float64)
    assert metrics.summarise(narrow, curves=[narrow[0]] * 4) == metrics.summarise(wide, curves=[wide[0]] * 4)


accuracies = st.floats(0.0, 1.0, width=32)
matrices = st.integers(2, 6).flatmap(lambda t: arrays(np.float64, (t, t), elements=accuracies))


def vector(matrix, data):
    return data.draw(arrays(np.float64, len(matrix), elements=accuracies))


@given(matrices)
def test_forgetting_first_last_is_minus_backward_transfer(matrix):
    assert metrics.forgetting_first_last(matrix) == -metrics.bwt(matrix)


@given(matrices)
def test_constant_accuracies_have_no_transfer_and_no_forgetting(matrix):
    still = np.broadcast_to(matrix[0], matrix.shape)
    assert metrics.bwt(still) == metrics.forgetting(still) == metrics.forgetting_first_last(still) == 0.0
    assert metrics.nbt(still) == 0.0
    assert metrics.average_accuracy(still) == close(np.diagonal(still).mean())


@given(matrices)
def test_drop_from_the_best_is_at_least_the_drop_from_the_first(matrix):
    assert metrics.forgetting(matrix) >= metrics.forgetting_first_last(matrix) - 1e-12


@given(matrices)
def test_all_kinds_of_forgetting_agree_for_two_tasks(matrix):
    two = matrix[:2, :2]
    drop = two[0, 0] - two[1, 0]
    assert metrics.forgetting(two) == metrics.forgetting_first_last(two) == metrics.nbt(two) == drop


@given(matrices)
def test_final_accuracy_is_learned_accuracy_plus_backward_transfer(matrix):
    tasks = len(matrix)
    total = np.trace(matrix) + (tasks - 1) * metrics.bwt(matrix)
    assert metrics.average_accuracy(matrix) == close(total / tasks)


@given(matrices, st.data())
def test_auc_is_learning_minus_forgetting(matrix, data):
    tasks, areas = len(matrix), vector(matrix, data)
    lost = np.append(metrics.nbt_per_task(matrix), 0.0)
    later = np.arange(tasks)[::-1]  # tasks that come after task k
    by_loss = (areas + later * (np.diagonal(matrix) - lost)) / (later + 1)
    np.testing.assert_allclose(metrics.auc_per_task(matrix, areas), by_loss, **CLOSE)
    assert 0.0 <= metrics.auc(matrix, areas) <= 1.0


@given(matrices, st.data())
def test_final_accuracy_and_gains_ignore_the_task_numbering(matrix, data):
    order = data.draw(st.permutations(range(len(matrix))))
    single = vector(matrix, data)
    assert metrics.average_accuracy(matrix[:, order]) == close(metrics.average_accuracy(matrix))
    renumbered = matrix[np.ix_(order, order)]
    gain = metrics.gain_over_single(matrix, single)
    assert metrics.gain_over_single(renumbered, single[order]) == close(gain)
    assert metrics.intransigence(matrix, single) == close(-gain)


@given(matrices, st.data())
def test_best_accuracy_before_the_end_ignores_its_time(matrix, data):
    # Task 0 may swap its rows before the last; the other tasks are kept out by being still.
    matrix[:, 1:] = 0.5
    shuffled = matrix.copy()
    shuffled[:-1, 0] = data.draw(st.permutations(matrix[:-1, 0].tolist()))
    assert metrics.forgetting(shuffled) == metrics.forgetting(matrix)


@given(matrices, st.data())
def test_percent_multiplies_shares_by_100(matrix, data):
    beside = [vector(matrix, data) for _ in range(3)]
    share = metrics.summarise(matrix, beside[0], single=beside[1], joint=beside[2], curves=matrix)
    beside = [100 * values for values in beside]
    percent = metrics.summarise(
        100 * matrix, beside[0], single=beside[1], joint=beside[2], curves=100 * matrix
    )
    assert list(percent) == list(share)
    del share["epochs_to_90"], percent["epochs_to_90"]  # a number of epochs, whatever the unit
    np.testing.assert_allclose(
        list(percent.values()), 100 * np.array(list(share.values())), rtol=0, atol=1e-12
    )


@given(arrays(np.float64, st.integers(1, 20), elements=accuracies))
def test_learning_area_lies_between_the_extremes_of_its_curve(curve):
    assert curve.min() - 1e-15 <= metrics.learning_area(curve) <= curve.max() + 1e-15
    assert metrics.learning_area(curve[::-1]) == close(metrics.learning_area(curve))
