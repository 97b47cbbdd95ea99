from __future__ import annotations

import numpy as np
import pytest

from fedkd.report.curves import curve_over_seeds, over_rounds
from fedkd.report.metrics import TEST_SAMPLES, find_metric
from fedkd.report.statistics import interval
from fedkd.report.study import Study, StudyAxis, StudyRun


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


def test_a_curve_of_common_tests_says_how_many_samples_are_behind_it():
    levels = ("knfu", "local")
    axes = (StudyAxis("fusion.strategy", levels),)
    curve = ((1, 0.3), (2, 0.5))
    runs = tuple(
        StudyRun((level,), 1, curves={"accuracy_global": curve, "accuracy_local": curve, TEST_SAMPLES: sizes})
        for level, sizes in zip(levels, (((1, 200.0),), ((1, 1500.0),)), strict=True)
    )
    study = Study("part", axes, ("fusion.strategy",), ("local",), ("accuracy_global",), runs)
    told = "on the common test set, before the last round on 200 to 1,500 of its samples."
    assert over_rounds(study, find_metric("accuracy_global")).caption.endswith(told)
    assert "samples" not in over_rounds(study, find_metric("accuracy_local")).caption
