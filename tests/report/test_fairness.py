"""Statistics of fairness against definitions written out as loops."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedkd.report.fairness import fairness

VALUES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30).filter(lambda values: max(values) > 1e-6)


@given(VALUES)
def test_indices_agree_with_their_definitions(values):
    n, found = len(values), fairness(values)
    jain = sum(values) ** 2 / (n * sum(value**2 for value in values))
    gini = sum(abs(a - b) for a in values for b in values) / (2 * n * sum(values))
    assert found["jain"] == pytest.approx(jain)
    assert found["gini"] == pytest.approx(gini, abs=1e-12)


@pytest.mark.parametrize("n", [1, 10, 11, 25])
def test_the_worst_tenth_is_rounded_up(n):
    values = [float((7 * i) % n) for i in range(n)]
    worst = -(-n // 10)
    assert fairness(values)["worst_10"] == sum(range(worst)) / worst
    assert fairness(values, lower_is_better=True)["worst_10"] == sum(range(n - worst, n)) / worst


def test_indices_reach_their_limits():
    equal, one = fairness([0.3] * 8), fairness([0.0] * 7 + [0.4])
    assert equal["jain"] == pytest.approx(1.0)
    assert equal["gini"] == pytest.approx(0.0, abs=1e-12)
    assert one["jain"] == pytest.approx(1 / 8)
    assert one["gini"] == pytest.approx(7 / 8)


@pytest.mark.parametrize("values", [[0.0, 0.0], [-1.0, 2.0]])
def test_indices_need_values_that_are_not_negative(values):
    assert fairness(values).keys() == {"worst_10"}
