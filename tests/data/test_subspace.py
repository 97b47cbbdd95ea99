"""The toy world of subspaces against its formula and its Bayes rule."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd.data.request import SourceRequest
from fedkd.data.sources.subspace import bayes_rule, class_means, load, subspaces
from fedkd.errors import UserError

WORLD = {"classes": 6, "subspaces": 2, "features": 20, "rank": 3, "spread": 3.0, "noise": 1.5, "seed": 0}


def world(tmp_path, **args):
    return load(SourceRequest("subspace", tmp_path, args=args))


def test_samples_have_the_means_and_variances_of_the_formula(tmp_path):
    made = world(tmp_path, **WORLD, samples=4000)
    bases, means = subspaces(WORLD), class_means(WORLD)
    np.testing.assert_allclose(bases[0].T @ bases[0], np.eye(3), atol=1e-12)
    for label in range(6):
        x = 4 * made.train_x[made.train_y == label].astype(np.float64)
        basis = bases[label // 3]
        np.testing.assert_allclose(x.mean(axis=0), basis @ means[label], atol=5 * 2 / np.sqrt(4000))
        covariance = basis @ basis.T + 1.5**2 * np.eye(20)
        np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.35)


def test_the_bayes_rule_beats_the_nearest_mean_in_all_features_without_noise_it_is_sure(tmp_path):
    args = WORLD | {"subspaces": 1}
    made, basis, means = world(tmp_path, **args, tests=500), subspaces(args)[0], class_means(args)
    right = bayes_rule(made.test_x.astype(np.float64), basis, means) == made.test_y
    assert 0.5 < right.mean() < 1.0
    sure = world(tmp_path, **args | {"noise": 0.0, "spread": 300.0}, tests=500)
    rule = bayes_rule(sure.test_x.astype(np.float64), basis, class_means(args | {"spread": 300.0}))
    assert (rule == sure.test_y).all()


def test_the_last_classes_may_have_few_samples(tmp_path):
    made = world(tmp_path, classes=5, samples=7, few_classes=2, few=3, tests=4)
    assert np.bincount(made.train_y).tolist() == [7, 7, 7, 3, 3]
    assert np.bincount(made.test_y).tolist() == [4] * 5
    again = world(tmp_path, classes=5, samples=7, tests=4)
    np.testing.assert_array_equal(again.train_x[again.train_y == 1], made.train_x[made.train_y == 1])


@pytest.mark.parametrize(
    ("args", "key"), [({"rank": 65}, "rank"), ({"subspaces": 11}, "subspaces"), ({"noise": -1.0}, "noise")]
)
def test_wrong_arguments_are_refused(tmp_path, args, key):
    with pytest.raises(UserError) as error:
        world(tmp_path, **args)
    assert error.value.key == f"data.args.{key}"
