"""KnFu against an implementation in loops, and the limits and properties that its formulas promise."""

from __future__ import annotations

import knfu_by_loops
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from pydantic import ValidationError

from fedkd.errors import UserError
from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.math.neighbour_weights import effective_neighbours
from fedkd.fusion.math.probabilities import softmax
from fedkd.fusion.strategy import Guidance, Knowledge
from fedkd.randomness import numpy_generator

DISTRIBUTIONS = ("soft", "hard", "shared", "calibrated")
DIVERGENCES = ("kl", "reverse", "symmetric", "js", "prediction_kl", "prediction_cosine")


def draw_logits(clients=3, samples=4, classes=3, *, spread=1.5, seed=0) -> np.ndarray:
    """Return `[N, M, C]` float32 logits of clients that each lean to classes of their own."""
    generator = numpy_generator(seed, "test logits")
    leaning = generator.normal(0, spread, (clients, 1, classes))
    return (leaning + generator.normal(0, spread, (clients, samples, classes))).astype(np.float32)


def knowledge_of(logits: np.ndarray, clients=None, **fields) -> Knowledge:
    clients = tuple(range(len(logits))) if clients is None else clients
    fields.setdefault("samples", np.full(len(logits), 10))
    return Knowledge(clients=clients, logits=logits, **fields)


def fuse(logits: np.ndarray, *, memory=None, clients=None, knowledge=None, **hyperparameters) -> Guidance:
    return KnFu(**hyperparameters).fuse(knowledge_of(logits, clients, **(knowledge or {})), memory or {})


@pytest.mark.parametrize("divergence", DIVERGENCES)
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shape=st.sampled_from([(3, 4, 3), (7, 25, 10)]),
    distribution=st.sampled_from(DISTRIBUTIONS),
    per_class=st.booleans(),
    beta=st.floats(0, 5),
    temperature=st.floats(0.8, 4),
)
def test_knfu_equals_loops(divergence, seed, shape, **options) -> None:
    logits = draw_logits(*shape, seed=seed)
    counts = numpy_generator(seed, "counts").integers(1, 50, (shape[0], shape[2]))
    guidance = fuse(logits, divergence=divergence, knowledge={"label_counts": counts}, **options)
    _, _, weights, fused = knfu_by_loops.knfu(
        logits.tolist(), divergence=divergence, label_counts=counts.tolist(), **options
    )
    assert_allclose(guidance.weights, weights, rtol=1e-4, atol=1e-6)
    assert_allclose(guidance.targets, fused, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("neighbours", [0, 1, 3, 99])
def test_size_age_and_nearest_equal_loops(neighbours) -> None:
    logits, samples, age = draw_logits(6, 12, 5), [10, 200, 35, 7, 90, 64], [0, 2, 0, 1, 5, 0]
    guidance = fuse(
        logits,
        beta=0.8,
        neighbours=neighbours,
        weight_by_size=True,
        stale_decay=0.6,
        knowledge={"samples": np.array(samples), "age": np.array(age)},
    )
    _, _, weights, fused = knfu_by_loops.knfu(
        logits.tolist(), beta=0.8, samples=samples, rho=0.6, age=age, neighbours=neighbours
    )
    assert_allclose(guidance.weights, weights, rtol=1e-4, atol=1e-7)
    assert_allclose(guidance.targets, fused, rtol=1e-4, atol=1e-6)


def test_beta_zero_is_the_mean_probability() -> None:
    logits = draw_logits(5, 8, 4)
    guidance = fuse(logits, beta=0.0)
    assert_array_equal(guidance.weights, np.full((5, 5), 0.2))
    mean = np.array([[knfu_by_loops.softmax(row, 1.0) for row in client] for client in logits]).mean(axis=0)
    assert_allclose(guidance.targets, np.broadcast_to(mean, (5, 8, 4)), atol=1e-6)


@given(beta=st.floats(1e6, np.finfo(np.float64).max), divergence=st.sampled_from(DIVERGENCES))
def test_infinite_beta_is_self_distillation(beta, divergence) -> None:
    logits = draw_logits(5, 8, 4)
    with np.errstate(all="raise", under="ignore"):
        guidance = fuse(logits, beta=beta, divergence=divergence)
    assert_array_equal(guidance.weights, np.eye(5))
    assert_allclose(guidance.targets, softmax(logits), atol=1e-6)


@given(
    beta=st.floats(0, np.finfo(np.float64).max),
    divergence=st.sampled_from(DIVERGENCES),
    distribution=st.sampled_from(["soft", "hard", "calibrated"]),
)
def test_identical_clients_have_uniform_weights_at_every_beta(beta, divergence, distribution) -> None:
    logits = np.repeat(draw_logits(1, 30, 6), 9, axis=0)
    guidance = fuse(logits, beta=beta, divergence=divergence, distribution=distribution)
    assert_allclose(guidance.weights, 1 / 9, rtol=1e-12)


@pytest.mark.parametrize("distribution", ["soft", "hard", "shared"])
def test_clients_with_disjoint_labels_have_no_mutual_weight(distribution) -> None:
    owned = np.eye(4).repeat(2, axis=1)  # client n owns classes 2n and 2n + 1
    logits = (np.log(owned + 1e-5)[:, None, :] + draw_logits(4, 40, 8, spread=0.3)).astype(np.float32)
    guidance = fuse(logits, beta=10.0, distribution=distribution, knowledge={"label_counts": owned * 50})
    assert_allclose(guidance.weights, np.eye(4), atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 6), st.integers(1, 5)),
    beta=st.floats(0, 50),
    distribution=st.sampled_from(["soft", "hard", "calibrated"]),
    divergence=st.sampled_from(DIVERGENCES),
    per_class=st.booleans(),
)
def test_each_client_has_the_largest_weight_for_itself(seed, shape, **options) -> None:
    weights = fuse(draw_logits(*shape, seed=seed), **options).weights
    assert_array_equal(np.diag(weights), weights.max(axis=1))
    neighbours = effective_neighbours(weights)
    assert (neighbours >= 1 - 1e-12).all() and (neighbours <= shape[0] + 1e-9).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_weight_falls_with_distance(divergence) -> None:
    logits = draw_logits(8, 15, 5)
    _, d, _, _ = knfu_by_loops.knfu(logits.tolist(), divergence=divergence)
    weights = fuse(logits, beta=2.0, divergence=divergence).weights
    for n in range(8):
        nearest_first = np.argsort(d[n])
        assert (np.diff(weights[n][nearest_first]) < 0).all()


def test_a_single_client_receives_its_own_predictions() -> None:
    logits = draw_logits(1, 6, 4)
    for options in ({}, {"neighbours": 3}, {"threshold": 0.5}, {"per_class": True}):
        assert_allclose(fuse(logits, **options).targets, softmax(logits), atol=1e-6)


def test_an_absent_client_has_no_row_and_no_column() -> None:
    logits, there = draw_logits(5, 8, 4), [0, 2, 4]
    everyone = fuse(logits, beta=1.0).weights[np.ix_(there, there)]
    guidance = fuse(logits[there], beta=1.0, clients=(0, 2, 4))
    assert guidance.targets.shape == (3, 8, 4)
    assert_allclose(guidance.weights, everyone / everyone.sum(axis=1, keepdims=True), rtol=1e-12)


def test_stale_knowledge_is_weighted_by_rho_to_the_age() -> None:
    logits, age = draw_logits(4, 8, 4), np.array([0, 3, 0, 1])
    fresh = fuse(logits, beta=1.0).weights
    stale = fuse(logits, beta=1.0, stale_decay=0.5, knowledge={"age": age}).weights
    expected = fresh * np.array([1.0, 0.125, 1.0, 0.5])
    assert_allclose(stale, expected / expected.sum(axis=1, keepdims=True), rtol=1e-12)
    assert KnFu().capabilities.stale_decay is None
    assert KnFu(stale_decay=0.5).capabilities.stale_decay == 0.5


def test_thresholds_drop_distant_clients_and_keep_self() -> None:
    logits = draw_logits(7, 10, 5)
    _, d, weights, _ = (np.array(part) for part in _reference(logits, beta=0.5))
    between = np.sort(d[~np.eye(7, dtype=bool)])  # 42 distances
    cases = {
        ("quantile", 0.0): (between[0] + between[1]) / 2,  # the closest pair alone
        ("quantile", 0.25): between[10] + 0.25 * (between[11] - between[10]),
        ("quantile", 1.0): np.inf,
        ("median", 0.0): 0.0,
        ("median", 0.5): 0.5 * (between[20] + between[21]) / 2,
    }
    for (kind, threshold), tau in cases.items():
        kept = np.where((d <= tau) | np.eye(7, dtype=bool), weights, 0.0)
        guidance = fuse(logits, beta=0.5, threshold=threshold, threshold_kind=kind)
        assert_allclose(
            guidance.weights, kept / kept.sum(axis=1, keepdims=True), rtol=1e-4, err_msg=f"{kind} {threshold}"
        )


def _reference(logits, **options):
    p, d, weights, fused = knfu_by_loops.knfu(logits.tolist(), **options)
    return np.array(p), np.array(d), np.array(weights), np.array(fused)


def test_float16_uploads_are_fused_in_float32() -> None:
    logits = draw_logits(3, 20, 10, spread=4)
    coarse = logits.astype(np.float16)
    guidance = fuse(coarse, beta=0.5)
    assert guidance.targets.dtype == np.float32
    # Exactly what the rounded logits say: nothing more is lost on the way.
    assert_array_equal(guidance.targets, fuse(coarse.astype(np.float32), beta=0.5).targets)
    assert_allclose(guidance.targets, fuse(logits, beta=0.5).targets, atol=5e-3)


def test_an_overflowed_float16_upload_keeps_its_class() -> None:
    coarse = np.array([[[np.inf, 3.0, -np.inf], [60000.0, np.inf, 0.0]]], dtype=np.float16)
    assert_array_equal(fuse(coarse).targets, [[[1, 0, 0], [0, 1, 0]]])


def test_temperature_softens_predictions() -> None:
    logits = draw_logits(2, 30, 6)
    entropies = []
    for temperature in (0.1, 1.0, 4.0, 1e6):
        q = fuse(logits, temperature=temperature, neighbours=0).targets.astype(np.float64)
        entropies.append(-(q * np.log(q + 1e-30)).sum(axis=-1).mean())
    assert entropies == sorted(entropies)
    assert entropies[-1] == pytest.approx(np.log(6), abs=1e-4)


def test_the_moving_average_persists_under_partial_participation() -> None:
    strategy = KnFu(distribution_momentum=0.75)
    rounds = [((0, 2), 0), ((1, 2, 5), 1), ((0, 1), 2)]
    average: dict[int, np.ndarray] = {}
    memory: dict[str, np.ndarray] = {}
    for clients, seed in rounds:
        logits = draw_logits(len(clients), 9, 4, seed=seed)
        guidance = strategy.fuse(knowledge_of(logits, clients), memory)
        for row, client in enumerate(clients):
            p = softmax(logits[row]).mean(axis=0, dtype=np.float64)
            average[client] = 0.75 * average[client] + 0.25 * p if client in average else p
        present = np.array([knfu_by_loops.smooth(average[client], 1e-6) for client in clients])
        d = np.array([[knfu_by_loops.kl(a, b) for b in present] for a in present])
        weights = np.exp(-10.0 * d)
        assert_allclose(guidance.weights, weights / weights.sum(axis=1, keepdims=True), rtol=1e-6)
        memory = guidance.memory
        assert all(np.isfinite(array).all() for array in memory.values())
    assert memory["clients"].tolist() == [0, 1, 2, 5]
    assert_allclose(memory["distribution"], [average[client] for client in (0, 1, 2, 5)], rtol=1e-12)


def test_stale_knowledge_is_averaged_in_once() -> None:
    strategy = KnFu(distribution_momentum=0.5, stale_decay=0.9)
    first, second = draw_logits(2, 9, 4, seed=1), draw_logits(2, 9, 4, seed=2)
    memory = strategy.fuse(knowledge_of(first), {}).memory
    before = strategy.fuse(knowledge_of(second), memory).memory["distribution"]
    newer = np.stack([draw_logits(1, 9, 4, seed=3)[0], second[1]])  # client 1 misses the third round
    third = knowledge_of(newer, age=np.array([0, 1]))
    after = strategy.fuse(third, {**memory, "distribution": before}).memory["distribution"]
    assert_array_equal(after[1], before[1])
    assert np.abs(after[0] - before[0]).max() > 1e-3


def test_memory_is_empty_without_a_moving_average() -> None:
    assert fuse(draw_logits()).memory == {}


def test_only_the_oracle_asks_for_label_counts() -> None:
    assert [KnFu(distribution=kind).capabilities.label_counts for kind in DISTRIBUTIONS] == [0, 0, 1, 0]
    with pytest.raises(ValueError, match="label_counts"):
        fuse(draw_logits(), distribution="shared")


@pytest.mark.parametrize(
    "wrong", [{"beta": -1}, {"beta": float("nan")}, {"temperature": 0}, {"neighbours": -1}, {"betta": 1}]
)
def test_wrong_hyperparameters_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        KnFu(**wrong)


def test_a_quantile_is_at_most_one() -> None:
    with pytest.raises(UserError, match=r"fusion.threshold: must be ≤ 1 as a quantile, got 2"):
        KnFu(threshold=2)
    assert KnFu(threshold=2, threshold_kind="median").threshold == 2


def test_knowledge_must_be_consistent() -> None:
    logits = draw_logits(3, 4, 3)
    with pytest.raises(ValueError, match="ascend"):
        knowledge_of(logits, clients=(4, 2, 9))
    with pytest.raises(ValueError, match="samples has 2 rows for 3 clients"):
        knowledge_of(logits, samples=np.ones(2))
