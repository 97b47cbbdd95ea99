"""The baselines `fedmd`, `local` and `centralized`."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.fusion.centralized import Centralized
from fedkd.fusion.distillation.fedmd import FedMD
from fedkd.fusion.local import Local
from fedkd.fusion.strategy import Knowledge
from fedkd.randomness import numpy_generator


def draw(clients=5, samples=7, classes=4) -> np.ndarray:
    return numpy_generator(0, "test logits").normal(0, 5, (clients, samples, classes)).astype(np.float32)


def knowledge_of(logits: np.ndarray) -> Knowledge:
    return Knowledge(clients=tuple(range(len(logits))), logits=logits, samples=np.arange(1, len(logits) + 1))


def test_fedmd_is_the_plain_mean_of_logits() -> None:
    logits = draw()
    guidance = FedMD().fuse(knowledge_of(logits), {})
    by_hand = [[sum(float(logits[n, i, c]) for n in range(5)) / 5 for c in range(4)] for i in range(7)]
    assert_array_equal(guidance.targets, np.array(by_hand).astype(np.float32))
    assert_allclose(guidance.weights, 0.2)


def test_fedmd_reads_float16() -> None:
    coarse = draw().astype(np.float16)
    fused = FedMD().fuse(knowledge_of(coarse), {}).targets
    assert fused.dtype == np.float32
    assert_allclose(fused, coarse.astype(np.float64).mean(axis=0), rtol=1e-6)


def test_fedmd_bounds_an_overflowed_float16_upload() -> None:
    coarse = np.array([[[np.inf, 1.0]], [[-np.inf, 3.0]], [[6.0, 5.0]]], dtype=np.float16)
    assert_allclose(FedMD().fuse(knowledge_of(coarse), {}).targets, [[2.0, 3.0]])
    assert_allclose(FedMD().fuse(knowledge_of(coarse[:1]), {}).targets, [[65504.0, 1.0]])


def test_fedmd_draws_alignment_samples_only_if_set() -> None:
    generator = numpy_generator(0, "request")
    assert FedMD().request(9, {}, generator) is None
    assert FedMD(samples_per_round=9).request(9, {}, generator) is None
    draws = [FedMD(samples_per_round=4).request(9, {}, generator) for _ in range(50)]
    assert all(len(drawn) == 4 and (np.diff(drawn) > 0).all() for drawn in draws)
    assert np.unique(draws).tolist() == list(range(9))


def test_fedmd_losses_equal_their_formulas() -> None:
    torch = pytest.importorskip("torch")
    student, target = torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[2.0, 1.0], [0.0, 4.0]])
    assert float(FedMD().loss(student, target)) == pytest.approx((1 + 2 + 0 + 4) / 4)
    assert float(FedMD(matching="mse").loss(student, target)) == pytest.approx((1 + 4 + 0 + 16) / 4)


@pytest.mark.parametrize("strategy", [Local, Centralized])
def test_local_and_centralized_exchange_nothing(strategy) -> None:
    nothing = Knowledge(clients=(0, 1), logits=None, samples=np.array([3, 4]))
    guidance = strategy().fuse(nothing, {})
    assert strategy.capabilities.sends == "nothing"
    assert guidance.targets is None and guidance.weights is None and guidance.memory == {}
