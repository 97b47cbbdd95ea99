"""Targets at a temperature stand for predictions at temperature 1."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd.fusion.fidelity import divergence
from fedkd.fusion.probabilities import softmax
from fedkd.fusion.registry import make_strategy


@pytest.mark.parametrize("name", ["knfu", "kta", "ktpfl", "dp"])
@pytest.mark.parametrize("temperature", [1.0, 3.0, 10.0])
def test_whoever_follows_targets_exactly_has_no_divergence(name, temperature):
    z = np.random.default_rng(0).normal(size=(20, 5)) * 4
    strategy = make_strategy(name, {"temperature": temperature})
    found = strategy.probabilities(softmax(z, temperature))
    np.testing.assert_allclose(found, softmax(z, 1.0), atol=1e-5)
    assert divergence(z, found) < 1e-5
