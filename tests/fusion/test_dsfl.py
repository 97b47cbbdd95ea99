"""DS-FL against loops, its limits, and how far entropy reduction reduces entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from pydantic import ValidationError
from rounds import (
    draw_logits,
    entropy,
    knowledge_of,
    mean_by_loops,
    softmax_by_loops,
)

from fedkd.fusion.distillation.dsfl import DSFL
from fedkd.fusion.math.probabilities import softmax
from fedkd.randomness import numpy_generator


def fuse(logits, clients=None, **hyperparameters) -> np.ndarray:
    return DSFL(**hyperparameters).fuse(knowledge_of(logits, clients), {}).targets


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_dsfl_equals_loops(temperature) -> None:
    logits = draw_logits()
    mean = mean_by_loops(softmax_by_loops(logits))
    assert_allclose(fuse(logits, sharpen="mean"), mean, rtol=1e-6)
    sharp = softmax_by_loops(np.array([mean]), temperature)[0]
    assert_allclose(fuse(logits, era_temperature=temperature), sharp, rtol=1e-5)


def test_dsfl_averages_probabilities_not_logits() -> None:
    logits = np.array([[[10.0, 0.0]], [[0.0, 2.0]]], dtype=np.float32)
    assert_allclose(fuse(logits, sharpen="mean")[0, 0], (1 / (1 + math.exp(-10)) + 1 / (1 + math.exp(2))) / 2)
    assert fuse(logits, sharpen="mean")[0, 0] < softmax(logits.mean(axis=0))[0, 0] - 0.4


def test_entropy_reduction_sharpens_uncertain_means() -> None:
    """Every mean that leaves each class something, if classes are few; see the next test for the rest."""
    for classes in (2, 3, 5, 8):
        mean = numpy_generator(0, "means").dirichlet(np.full(classes, 1.0), 500)
        mean = 0.8 * mean + 0.2 / classes  # nobody is quite sure
        fused = fuse(np.log(mean)[None].astype(np.float32))
        assert entropy(fused).mean() < 0.9 * entropy(mean).mean()
        if classes <= 5:
            assert (entropy(fused) <= entropy(mean) + 1e-6).all()


def test_entropy_reduction_is_limited_by_its_temperature() -> None:
    certain = np.array([[[50.0, 0.0, 0.0]]], dtype=np.float32)
    assert_allclose(fuse(certain)[0, 0], 1 / (1 + 2 * math.exp(-10)), rtol=1e-5)  # not 1: a factor exp(1/T)
    vague = np.linspace(0.9, 1.1, 100)[None, None] / 100
    logits = np.log(vague).astype(np.float32)
    assert entropy(fuse(logits))[0] > entropy(vague)[0, 0]  # 100 classes are too many for T = 0.1
    assert entropy(fuse(logits, era_temperature=0.001))[0] < entropy(vague)[0, 0]


def test_low_temperatures_give_one_hot_and_high_ones_uniform_targets() -> None:
    logits = draw_logits(3, 20, 4)
    mean = fuse(logits, sharpen="mean")
    assert_allclose(fuse(logits, era_temperature=1e-6), np.eye(4)[mean.argmax(axis=1)], atol=1e-6)
    assert_allclose(fuse(logits, era_temperature=1e6), 0.25, atol=1e-6)


def test_a_single_client_is_its_own_mean() -> None:
    logits = draw_logits(1, 8, 4)
    assert_allclose(fuse(logits, sharpen="mean"), softmax(logits[0]), atol=1e-7)


def test_all_clients_have_equal_weight() -> None:
    assert_allclose(DSFL().fuse(knowledge_of(draw_logits(5, 8, 4)), {}).weights, 0.2)


def test_a_round_draws_the_set_number_of_samples() -> None:
    generator = numpy_generator(0, "request")
    assert DSFL().request(9, {}, generator) is None
    assert DSFL(samples_per_round=9).request(9, {}, generator) is None
    strategy = DSFL(samples_per_round=4)
    draws = [strategy.request(9, {}, generator) for _ in range(50)]
    assert all(len(drawn) == 4 and (np.diff(drawn) > 0).all() for drawn in draws)
    assert np.unique(draws).tolist() == list(range(9))


@pytest.mark.parametrize("wrong", [{"era_temperature": 0}, {"sharpen": "max"}, {"samples_per_round": 0}])
def test_wrong_hyperparameters_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        DSFL(**wrong)
