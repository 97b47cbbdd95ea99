"""Fusions in blocks of receivers against fusions with all pairs of clients at once."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.math import combine, weight_blocks
from fedkd.fusion.math.neighbour_weights import effective_neighbours
from fedkd.fusion.math.probabilities import softmax
from fedkd.fusion.math.weight_blocks import BlockedWeights
from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.randomness import numpy_generator
from fedkd.tracking.neighbours import read_neighbours, write_neighbours


def draw_logits(clients: int, samples: int, classes: int) -> np.ndarray:
    generator = numpy_generator(0, "test logits")
    leaning = generator.normal(0, 1.5, (clients, 1, classes))
    return (leaning + generator.normal(0, 1.5, (clients, samples, classes))).astype(np.float32)


def fuse(logits: np.ndarray, **options) -> Guidance:
    clients = tuple(range(len(logits)))
    return KnFu(**options).fuse(Knowledge(clients=clients, logits=logits, samples=np.array(clients) + 1), {})


OPTIONS = (
    {},
    {"neighbours": 3},
    {"neighbours": 0, "divergence": "symmetric"},
    {"perplexity": 4.0, "divergence": "js"},
    {"per_class": True, "divergence": "reverse"},
    {"absent_by_experts": True, "weight_by_size": True, "beta": 0.1},
    {"threshold": 0.3},
    {"divergence": "prediction_kl"},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("share", [1, 60], ids=["sparse", "dense"])
def test_blocks_of_receivers_equal_one_block(monkeypatch, options, share) -> None:
    logits = draw_logits(50, 6, 4)
    whole = fuse(logits, **options)
    monkeypatch.setattr(weight_blocks, "BLOCK", 7 * 50)
    monkeypatch.setattr(combine, "SPARSE", 1 / share)
    blocked = fuse(logits, **options)
    assert isinstance(whole.weights, np.ndarray)
    apart = "threshold" not in options and "prediction" not in options.get("divergence", "")
    assert isinstance(blocked.weights, BlockedWeights) == apart
    assert_allclose(np.asarray(blocked.weights), whole.weights, rtol=1e-12, atol=1e-15)
    assert_allclose(blocked.weights[41], whole.weights[41], rtol=1e-12, atol=1e-15)
    assert_allclose(blocked.targets, whole.targets, rtol=1e-5, atol=1e-7)
    if apart:
        assert_allclose(blocked.weights.effective, effective_neighbours(whole.weights), rtol=1e-10)


def test_few_neighbours_give_the_targets_of_dense_weights(monkeypatch) -> None:
    generator = numpy_generator(0, "sparse")
    weights = generator.random((40, 40)) * (generator.random((40, 40)) < 0.1) + np.eye(40)
    predictions = softmax(draw_logits(40, 5, 3))
    dense = combine.combine(weights, predictions)
    monkeypatch.setattr(weight_blocks, "BLOCK", 40)
    monkeypatch.setattr(combine, "SPARSE", 1.0)
    assert_allclose(combine.combine(weights, predictions), dense, rtol=1e-6)


@given(seed=st.integers(0, 50), count=st.integers(1, 12))
def test_the_largest_weights_are_those_of_a_stable_sort(seed, count) -> None:
    weights = numpy_generator(seed, "ties").integers(0, 4, (6, 9)) / 4
    expected = np.argsort(-weights, axis=1, kind="stable")[:, :count]
    assert_array_equal(weight_blocks.largest(weights, count), expected)


def test_the_tables_of_blocks_are_those_of_whole_weights(monkeypatch, tmp_path) -> None:
    logits, clients = draw_logits(600, 2, 4), range(1, 601)
    whole = fuse(logits, beta=1.0)
    monkeypatch.setattr(weight_blocks, "BLOCK", 100 * 600)
    blocked = fuse(logits, beta=1.0)
    assert isinstance(blocked.weights, BlockedWeights)
    write_neighbours(tmp_path, 1, clients, whole.weights, whole.distances)
    write_neighbours(tmp_path, 2, clients, blocked.weights)
    one, other = (read_neighbours(tmp_path, round) for round in (1, 2))
    assert one is not None and other is not None
    for name in ("clients", "weights", "distances", "senders"):
        assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("neighbours", [None, 5])
def test_a_fusion_stays_within_its_estimated_memory(neighbours) -> None:
    logits = draw_logits(4000, 5, 4)
    tracemalloc.start()
    try:
        guidance = fuse(logits, neighbours=neighbours)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(guidance.weights, BlockedWeights)
    estimate = weight_blocks.fusion_memory(4000, 5, 4)
    assert estimate / 4 < peak < estimate, "the N² distances and weights alone would take 256 MB"
