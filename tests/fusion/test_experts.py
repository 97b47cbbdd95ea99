"""Class experts, alone and filling in what KnFu's neighbours lack, against loops in float64."""

from __future__ import annotations

import knfu_by_loops
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from fedkd.fusion.distillation.experts import Experts
from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.math.probabilities import softmax
from fedkd.fusion.strategy import Knowledge
from fedkd.randomness import numpy_generator
from fedkd.server.guidance import tables_of


def draw_logits(clients: int, samples: int, classes: int, seed: int = 0) -> np.ndarray:
    generator = numpy_generator(seed, "logits of experts")
    leaning = generator.normal(0, 2, (clients, 1, classes))
    return (leaning + generator.normal(0, 1.5, (clients, samples, classes))).astype(np.float32)


def knowledge_of(logits: np.ndarray, clients=None, **fields) -> Knowledge:
    fields.setdefault("samples", np.full(len(logits), 10))
    return Knowledge(clients or tuple(range(len(logits))), logits, **fields)


def by_loops(logits, *, distribution="soft", temperature=1.0, factor=None, label_counts=None):
    """Return q, e and F as nested lists; `factor` is what each client weighs besides."""
    clients, rows, classes = np.shape(logits)
    factor = factor or [1.0] * clients
    q = [[knfu_by_loops.softmax(row, temperature) for row in client] for client in logits]
    epsilon = 1e-2 if distribution == "hard" else 1e-6
    e = knfu_by_loops.class_distributions(q, distribution, epsilon, label_counts)
    fused = []
    for i in range(rows):
        row = []
        for c in range(classes):
            asked = [factor[m] * e[m][c] for m in range(clients)]
            row.append(sum(w * q[m][i][c] for m, w in enumerate(asked)) / sum(asked))
        fused.append([value / sum(row) for value in row])
    return q, e, fused


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shape=st.sampled_from([(3, 4, 3), (6, 15, 10), (1, 3, 4)]),
    distribution=st.sampled_from(["soft", "hard", "shared", "calibrated"]),
    temperature=st.floats(0.8, 4),
)
def test_experts_equal_loops(seed, shape, distribution, temperature) -> None:
    logits = draw_logits(*shape, seed=seed)
    generator = numpy_generator(seed, "counts")
    counts = generator.integers(1, 50, (shape[0], shape[2]))
    samples, age = generator.integers(1, 90, shape[0]), generator.integers(0, 4, shape[0])
    strategy = Experts(temperature, distribution, weight_by_size=True, stale_decay=0.5)
    found = strategy.fuse(knowledge_of(logits, samples=samples, age=age, label_counts=counts), {})
    factor = (samples * 0.5**age).tolist()
    options = {"distribution": distribution, "temperature": temperature, "label_counts": counts.tolist()}
    _, _, fused = by_loops(logits.tolist(), factor=factor, **options)
    assert_allclose(found.targets, fused, rtol=1e-4, atol=1e-6)
    assert_allclose(found.weights, np.broadcast_to(np.array(factor) / sum(factor), (shape[0],) * 2))


def test_experts_equal_per_class_knfu_at_beta_0() -> None:
    logits = draw_logits(5, 12, 10)
    shared = Experts().fuse(knowledge_of(logits), {}).targets
    personal = KnFu(beta=0.0, per_class=True).fuse(knowledge_of(logits), {}).targets
    assert shared.shape == (12, 10)
    assert_allclose(personal, np.broadcast_to(shared, personal.shape), atol=1e-6)


def test_owners_of_a_class_teach_it() -> None:
    """Two clients of two classes each: the owner's word counts, the other's "something else" does not."""
    logits = np.log(np.array([[[0.98, 0.02], [0.9, 0.1]], [[0.02, 0.98], [0.02, 0.98]]], np.float32))
    targets = Experts().fuse(knowledge_of(logits), {}).targets
    e = np.array([[0.94, 0.06], [0.02, 0.98]])
    raw = np.array([0.94 * 0.98 + 0.02 * 0.02, 0.06 * 0.02 + 0.98 * 0.98]) / e.sum(axis=0)
    assert_allclose(targets[0], raw / raw.sum(), atol=1e-5)
    raw = np.array([0.94 * 0.9 + 0.02 * 0.02, 0.06 * 0.1 + 0.98 * 0.98]) / e.sum(axis=0)
    assert_allclose(targets[1], raw / raw.sum(), atol=1e-5)
    assert targets[1, 0] > softmax(logits)[:, 1].mean(axis=0)[0]


def test_expert_limits_equal_their_special_cases() -> None:
    alike = np.repeat(draw_logits(1, 6, 4), 5, axis=0)
    assert_allclose(Experts().fuse(knowledge_of(alike), {}).targets, softmax(alike)[0], atol=1e-6)
    unlike = draw_logits(5, 6, 4)
    mean = softmax(unlike).mean(axis=0)
    # All of the same expertise: the oracle that counts as many of each class, of everybody.
    same = knowledge_of(unlike, label_counts=np.full((5, 4), 7))
    assert_allclose(Experts(distribution="shared").fuse(same, {}).targets, mean, atol=1e-6)


def test_expert_targets_reach_absent_clients() -> None:
    knowledge = knowledge_of(draw_logits(3, 4, 5), (0, 2, 5))
    _, for_absent = tables_of(Experts().fuse(knowledge, {}), knowledge)
    assert for_absent


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), shape=st.sampled_from([(3, 4, 3), (6, 9, 10)]), beta=st.floats(0, 5))
def test_filling_in_equals_loops(seed, shape, beta) -> None:
    logits = draw_logits(*shape, seed=seed)
    clients, rows, classes = shape
    _, p, fused = by_loops(logits.tolist())
    _, _, _, own = knfu_by_loops.knfu(logits.tolist(), beta=beta)
    expected = np.empty(shape)
    for n in range(clients):
        for i in range(rows):
            g = sum(max(0.0, 1 - classes * p[n][c]) * fused[i][c] for c in range(classes))
            expected[n, i] = [(1 - g) * own[n][i][c] + g * fused[i][c] for c in range(classes)]
    found = KnFu(beta=beta, absent_by_experts=True).fuse(knowledge_of(logits), {})
    assert_allclose(found.targets, expected, rtol=1e-4, atol=1e-6)
    assert found.mixed is None


def test_clients_that_lack_no_class_receive_plain_knfu() -> None:
    even = knowledge_of(draw_logits(4, 8, 3), label_counts=np.full((4, 3), 5))
    options = {"beta": 2.0, "distribution": "shared"}
    filled = KnFu(**options, absent_by_experts=True).fuse(even, {})
    assert_allclose(filled.targets, KnFu(**options).fuse(even, {}).targets, atol=1e-6)


def test_a_sole_class_owner_keeps_its_predictions_there() -> None:
    """Client 0 has class 0 alone, and says so of every sample; others know all three."""
    q = np.full((3, 6, 3), 0.005, np.float32)
    q[0, :, 0] = 0.99
    for m in (1, 2):
        q[m, np.arange(6), np.arange(6) % 3] = 0.99
    found = KnFu(beta=1e6, absent_by_experts=True).fuse(knowledge_of(np.log(q)), {}).targets[0]
    assert (found[[0, 3], 0] > 0.97).all()
    assert (found[[1, 4], 1] > 0.3).all() and (found[[2, 5], 2] > 0.3).all()  # by itself: 0.005
