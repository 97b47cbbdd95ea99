"""The task of regression: its score and metrics in the targets' unit."""

from __future__ import annotations

from math import exp, isnan, log, pi, sqrt

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fedkd.data.targets import measure_targets
from fedkd.scenario.sections import Data
from fedkd.training.metrics import METRICS
from fedkd.training.task import CLASSIFICATION, REGRESSION, task_of

DRAW = np.random.default_rng(0)
TRAIN = DRAW.normal((150.0, -3.0), (70.0, 0.5), (200, 2))
SCALES = {head: measure_targets(("a", "b"), TRAIN, head) for head in ("gaussian", "mean")}
Y = DRAW.normal((150.0, -3.0), (70.0, 0.5), (40, 2))
OUTPUTS = DRAW.normal(size=(40, 4)).astype(np.float32)


def functions(head):
    return {name: METRICS.load(name) for name in REGRESSION[head].metrics}


def measured(outputs, y, head="gaussian"):
    scale = SCALES[head]
    return REGRESSION[head].measure(functions(head), outputs, scale.standardise(y), scale)


def by_hand(outputs, y):
    """Return the metrics by loops over samples and targets, all in the unit of the targets."""
    mean, std = TRAIN.mean(axis=0), TRAIN.std(axis=0)
    errors, nlls, inside, r2 = [], [], [], []
    for o in range(2):
        of_target = []
        for i in range(len(y)):
            m, s = mean[o] + std[o] * outputs[i, o], std[o] * exp(0.5 * outputs[i, 2 + o])
            error = y[i, o] - m
            of_target.append(error)
            nlls.append(0.5 * log(2 * pi * s**2) + error**2 / (2 * s**2))
            inside.append(abs(error) <= 1.6448536269514722 * s)
        errors += of_target
        centre = sum(y[:, o]) / len(y)
        r2.append(1 - sum(e**2 for e in of_target) / sum((v - centre) ** 2 for v in y[:, o]))
    return {
        "mae": sum(map(abs, errors)) / len(errors),
        "rmse": sqrt(sum(e**2 for e in errors) / len(errors)),
        "r2": sum(r2) / 2,
        "nll": sum(nlls) / len(nlls),
        "coverage": sum(inside) / len(inside),
    }


def test_metrics_equal_loops_by_hand_in_the_unit_of_the_targets():
    assert measured(OUTPUTS, Y).metrics == pytest.approx(by_hand(OUTPUTS.astype(float), Y), rel=1e-6)


def test_the_order_of_samples_changes_nothing():
    order = DRAW.permutation(len(Y))
    assert measured(OUTPUTS[order], Y[order]).metrics == pytest.approx(measured(OUTPUTS, Y).metrics, rel=1e-9)


def test_right_predictions_have_perfect_metrics():
    scale = SCALES["gaussian"]
    right = np.concatenate([scale.standardise(Y), np.zeros_like(Y)], axis=1)
    found = measured(right, Y)
    assert found.metrics["rmse"] == pytest.approx(0.0, abs=1e-4)
    assert (found.metrics["r2"], found.metrics["coverage"]) == (pytest.approx(1.0), 1.0)


def test_nine_of_ten_gaussian_targets_are_inside_the_interval():
    mean, std = TRAIN.mean(axis=0), TRAIN.std(axis=0)
    y = np.random.default_rng(1).normal(mean, std, (4000, 2))
    found = measured(np.zeros((4000, 4), np.float32), y).metrics["coverage"]
    assert found == pytest.approx(0.9, abs=3 * sqrt(0.9 * 0.1 / 8000))


def test_a_gain_is_a_smaller_error():
    good, bad = (measured(OUTPUTS * factor, Y) for factor in (0.1, 2.0))
    assert isnan(good.accuracy)
    assert (good.quality, bad.quality) == (-good.metrics["rmse"], -bad.metrics["rmse"])
    assert good.quality > bad.quality


def test_losses_are_those_of_training():
    import torch

    for head, outputs in (("gaussian", OUTPUTS), ("mean", OUTPUTS[:, :2])):
        y = torch.from_numpy(SCALES[head].standardise(Y))
        loss = REGRESSION[head].loss(torch.from_numpy(outputs), y)
        assert measured(outputs, Y, head).loss == pytest.approx(float(loss), rel=1e-5)


def test_a_constant_target_has_no_r2_and_no_samples_no_metrics():
    flat = np.tile(Y[:1], (5, 1))
    assert isnan(measured(OUTPUTS[:5], flat).metrics["r2"])
    nothing = measured(OUTPUTS[:0], Y[:0])
    assert all(map(isnan, [nothing.loss, nothing.quality, *nothing.metrics.values()]))


def test_diverged_models_have_no_metrics():
    found = measured(np.full((40, 4), np.nan, np.float32), Y)
    assert all(map(isnan, found.metrics.values()))


def test_scales_come_back():
    scale = SCALES["mean"]
    assert_allclose(scale.original(scale.standardise(Y)), Y, rtol=1e-5)
    assert scale.outputs == 2 and SCALES["gaussian"].outputs == 4
    constant = measure_targets(("a",), np.full((3, 1), 7.0), "mean")
    assert constant.standardise(np.full((2, 1), 7.0)).tolist() == [[0.0], [0.0]]


def test_a_scenario_names_its_task():
    assert task_of(Data()) is CLASSIFICATION
    assert task_of(Data(task="regression")) is REGRESSION["gaussian"]
    assert task_of(Data(task="regression", head="mean")) is REGRESSION["mean"]
