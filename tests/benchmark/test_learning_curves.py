"""Forecasts of learning curves: exact curves, coverage, priors, and what has no interval."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd.benchmark.learning_curves import (
    FAMILIES,
    MORE_FAMILIES,
    Experience,
    conformal_half_width,
    fit,
    predict,
)

ALL = FAMILIES | MORE_FAMILIES
EXACT = {
    "pow3": lambda x: 0.9 - 0.7 * x**-0.8,
    "exp3": lambda x: 0.85 - 0.6 * np.exp(-0.15 * x),
    "mmf": lambda x: 0.9 - (0.9 - 0.1) / (1 + (0.2 * x) ** 1.5),
    "ilog2": lambda x: 0.95 - 0.4 / np.log(x + 1),
    "pow4": lambda x: 0.9 - (0.8 * x + 1.5) ** -0.9,
    "weibull": lambda x: 0.9 - (0.9 - 0.2) * np.exp(-((0.1 * x) ** 1.3)),
    "janoschek": lambda x: 0.9 - (0.9 - 0.2) * np.exp(-0.08 * x**1.3),
    "hill": lambda x: 0.9 * x**1.4 / (4.0**1.4 + x**1.4),
}
LAST = 30
ROUNDS = np.arange(1, LAST + 1, dtype=np.float64)


def noisy_curves(number: int, seed: int) -> list[dict[int, float]]:
    """Return curves of the four families with noise of one point."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        c, s = rng.uniform(0.6, 0.98), rng.uniform(0.3, 0.8)
        decay = [
            ROUNDS ** -rng.uniform(0.4, 1.2),
            np.exp(-rng.uniform(0.05, 0.3) * ROUNDS),
            1 / (1 + (rng.uniform(0.05, 0.3) * ROUNDS) ** rng.uniform(0.8, 2.0)),
            0.5 / np.log(ROUNDS + 1),
        ][rng.integers(4)]
        values = np.clip(c - s * decay + 0.01 * rng.standard_normal(LAST), 0, 1)
        found.append(dict(enumerate(values.tolist(), start=1)))
    return found


def until(curve: dict[int, float], round: int) -> dict[int, float]:
    return {at: value for at, value in curve.items() if at <= round}


@pytest.fixture(scope="module")
def experience() -> Experience:
    return Experience(tuple(noisy_curves(40, seed=0)))


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_curve_of_each_family_is_recovered(name):
    x = ROUNDS[:12]
    found = fit(ALL[name], x, EXACT[name](x))
    assert found is not None
    np.testing.assert_allclose(ALL[name].values(ROUNDS, found.parameters), EXACT[name](ROUNDS), atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_average_of_families_recovers_an_exact_curve(name):
    x = ROUNDS[:12]
    assert predict(x, EXACT[name](x), LAST) == pytest.approx(EXACT[name](float(LAST)), abs=1e-6)


def test_intervals_hold_as_often_as_promised(experience):
    errors, curves = experience.errors(8), noisy_curves(400, seed=1)
    forecasts = [experience.forecast(until(curve, 8), LAST, 0.9, errors) for curve in curves]
    held = [told.low <= curve[LAST] <= told.high for told, curve in zip(forecasts, curves, strict=True)]
    assert np.mean(held) >= 0.9 - 2 * np.sqrt(0.9 * 0.1 / len(curves))
    assert conformal_half_width(errors, 0.9) < 0.1  # of a useful width


def test_forecasts_beat_the_last_value_and_priors_help_early(experience):
    curves = noisy_curves(40, seed=2)

    def error(forecast) -> float:
        return float(np.mean([abs(forecast(until(curve, 5)) - curve[LAST]) for curve in curves]))

    last = error(lambda known: known[5])
    alone = error(lambda known: predict(ROUNDS[:5], np.array(list(known.values())), LAST))
    informed = error(lambda known: experience.forecast(known, LAST, 0.9, ()).value)
    assert informed < alone < last


def test_the_half_width_is_the_rank_that_split_conformal_prediction_names():
    errors = [n / 100 for n in range(1, 20)]
    assert conformal_half_width(errors, 0.9) == errors[17]  # ⌈20 · 0.9⌉ = 18th
    assert conformal_half_width(errors[:9], 0.9) == errors[8]
    assert conformal_half_width(errors[:8], 0.9) is None  # fewer than ⌈1/0.1⌉ − 1
    assert conformal_half_width([], 0.9) is None


def test_too_few_curves_or_rounds_have_no_interval_or_forecast():
    few = Experience(tuple(noisy_curves(3, seed=3)))
    known = until(few.curves[0], 8)
    told = few.forecast(known, LAST, 0.9, few.errors(8))
    assert told is not None and told.low is None and told.high is None
    assert Experience(()).forecast({1: 0.2, 2: 0.3}, LAST, 0.9, ()) is None


@pytest.mark.parametrize(
    "values", [[0.1] * 12, [0.0] * 12, [1.0] * 12, [0.9, 0.1] * 6, [0.9 - 0.05 * n for n in range(12)]]
)
def test_flat_falling_and_jumping_curves_have_a_forecast_between_0_and_1(values, experience):
    known = dict(enumerate(values, start=1))
    told = experience.forecast(known, LAST, 0.9, experience.errors(12))
    assert told is not None and 0 <= told.low <= told.value <= told.high <= 1
    alone = predict(ROUNDS[:12], np.array(values), LAST)
    assert alone is not None and 0 <= alone <= 1
