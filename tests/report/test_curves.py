from __future__ import annotations

import numpy as np
import pytest

from fedkd.report.curves import curve_over_seeds
from fedkd.report.statistics import interval


def test_only_what_all_seeds_have_counts():
    x, mean, half, seeds = curve_over_seeds([((1, 0.1), (2, 0.3), (4, 0.5)), ((2, 0.5), (4, 0.7), (6, 0.9))])
    assert x.tolist() == [2, 4] and half is None
    np.testing.assert_allclose(mean, [0.4, 0.6])
    np.testing.assert_allclose(seeds, [[0.3, 0.5], [0.5, 0.7]])


def test_from_three_seeds_on_there_are_intervals():
    _, _, half, _ = curve_over_seeds([((1, value),) for value in (0.1, 0.2, 0.6)])
    assert half.tolist() == [interval([0.1, 0.2, 0.6]).half]


@pytest.mark.parametrize("curves", [[], [((1, 0.1),), ((2, 0.1),)], [(), ()]])
def test_without_a_shared_point_there_is_none(curves):
    assert curve_over_seeds(curves) is None
