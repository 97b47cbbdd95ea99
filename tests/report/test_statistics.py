from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from fedkd.report.statistics import discoveries, interval, paired_difference


def test_means_and_intervals_equal_a_hand_computation():
    # s² = ((-1)² + 0² + 1²) / 2 = 1. With 2 degrees of freedom, Student's quantile has a closed form:
    # t(p) = (2p - 1) / √(2p(1 - p)), which is 4.3027 at p = 0.975.
    quantile = 0.95 / math.sqrt(2 * 0.975 * 0.025)
    result = interval([1.0, 2.0, 3.0])
    assert (result.mean, result.seeds) == (2.0, 3)
    assert result.half == pytest.approx(quantile / math.sqrt(3), rel=1e-9)


@pytest.mark.parametrize("n", [2, 5, 30])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_intervals_equal_scipys(n, level):
    values = np.random.default_rng(n).normal(size=n)
    low, high = stats.t.interval(level, n - 1, loc=values.mean(), scale=stats.sem(values))
    result = interval(list(values), level)
    assert (result.mean - result.half, result.mean + result.half) == pytest.approx((low, high), rel=1e-12)


def test_the_paired_interval_agrees_with_the_paired_t_test():
    draw = np.random.default_rng(0)
    ours = draw.normal(size=6)
    for shift in (0.0, 0.3, 1.0, 3.0):
        theirs = ours + shift + draw.normal(size=6)
        result = paired_difference(dict(enumerate(ours)), dict(enumerate(theirs)))
        assert result.excludes_zero() == (stats.ttest_rel(ours, theirs).pvalue < 0.05)
        assert result.mean == pytest.approx((ours - theirs).mean())


def test_the_p_value_equals_a_hand_computation():
    # Student's distribution with 2 degrees of freedom has P(|T| > t) = 1 − t / √(2 + t²).
    result = interval([1.0, 2.0, 3.0])
    t = 2.0 * math.sqrt(3)
    assert result.p == pytest.approx(1 - t / math.sqrt(2 + t**2))
    assert interval([0.7]).p is None and interval([0.5, 0.5]).p is None


def test_the_benjamini_hochberg_correction_equals_a_hand_computation():
    # The example of their paper (1995, section 3.2), at 5 %: the largest i with p(i) ≤ 0.05 · i / 15 is 4, as
    # 0.0095 ≤ 0.0133 and 0.0201 > 0.0167. Nine p-values are below 0.05.
    family = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    family += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0000]
    order = np.random.default_rng(0).permutation(15)
    found = discoveries([family[i] for i in order])
    assert found == [int(i) < 4 for i in order]
    assert discoveries([]) == []


def test_false_discoveries_are_rare():
    """Of a thousand tables without any effect about one in twenty has a mark; uncorrected nearly all have."""
    draws = np.random.default_rng(1).uniform(size=(1000, 60))
    marked = sum(any(discoveries(list(row))) for row in draws)
    assert marked < 80 and (draws < 0.05).any(axis=1).sum() > 900


def test_pairing_removes_common_effects_of_a_seed():
    ours, theirs = {1: 0.2, 2: 0.5, 3: 0.8}, {1: 0.1, 2: 0.4, 3: 0.7}
    assert interval(list(ours.values())).half > 0.5
    difference = paired_difference(ours, theirs)
    assert (difference.mean, difference.half) == pytest.approx((0.1, 0.0), abs=1e-12)
    assert difference.excludes_zero()


def test_only_common_seeds_are_paired():
    difference = paired_difference({1: 1.0, 2: 5.0, 3: 2.0}, {3: 1.0, 1: 0.5, 9: 100.0})
    assert (difference.mean, difference.seeds) == (0.75, 2)
    assert paired_difference({1: 1.0}, {2: 1.0}) is None


def test_one_seed_has_no_interval():
    assert interval([0.7]) == interval([0.7], 0.5)
    assert (interval([0.7]).half, interval([0.7]).excludes_zero()) == (None, None)


def test_equal_settings_are_not_separable():
    assert paired_difference({1: 0.5, 2: 0.6}, {1: 0.5, 2: 0.6}).excludes_zero() is False
