from __future__ import annotations

import numpy as np
import pytest

from fedkd.report.curves import curve_over_seeds
from fedkd.report.statistics import interval


def test_curves_use_points_common_to_all_seeds():
    x, mean, half, seeds = curve_over_seeds([((1, 0.1), (2, 0.3), (4, 0.5)), ((2, 0.5), (4, 0.7), (6, 0.9))])
    assert x.tolist() == [2, 4] and half is None
    np.testing.assert_allclose(mean, [0.4, 0.6])
    np.testing.assert_allclose(seeds, [[0.3, 0.5], [0.5, 0.7]])


def test_three_seeds_have_intervals():
    _, _, half, _ = curve_over_seeds([((1, value),) for value in (0.1, 0.2, 0.6)])
    assert half.tolist() == [interval([0.1, 0.2, 0.6]).half]


@pytest.mark.parametrize("curves", [[], [((1, 0.1),), ((2, 0.1),)], [(), ()]])
def test_seeds_without_a_common_point_have_no_curve(curves):
    assert curve_over_seeds(curves) is None
