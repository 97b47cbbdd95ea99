"""`max_confidence`: the most confident client teaches each sample."""

from __future__ import annotations

import knfu_by_loops
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.fusion.distillation.max_confidence import MaxConfidence
from fedkd.fusion.math.probabilities import softmax
from fedkd.fusion.strategy import Knowledge
from fedkd.randomness import numpy_generator


def draw(clients=3, samples=4, classes=3, seed=0, spread=2.0) -> np.ndarray:
    generator = numpy_generator(seed, "test logits")
    return generator.normal(0, spread, (clients, samples, classes)).astype(np.float32)


def knowledge_of(logits, labels=None, clients=None) -> Knowledge:
    clients = tuple(range(len(logits))) if clients is None else clients
    return Knowledge(clients=clients, logits=logits, samples=np.full(len(logits), 10), labels=labels)


def by_loops(logits, *, labels=None, beta=None, temperature=1.0):
    clients, samples, _ = logits.shape
    q = [[knfu_by_loops.softmax(row, 1.0) for row in client] for client in logits.tolist()]
    weights = [[1.0] * clients] * clients
    if beta is not None:
        weights = knfu_by_loops.knfu(logits.tolist(), beta=beta)[2]
    targets, share = np.empty(logits.shape), np.zeros((clients, clients))
    for n in range(clients):
        for i in range(samples):
            scores = [
                weights[n][m] * (max(q[m][i]) if labels is None else q[m][i][labels[i]])
                for m in range(clients)
            ]
            winner = max(range(clients), key=lambda m: scores[m])
            if scores[n] == scores[winner]:
                winner = n
            targets[n, i] = knfu_by_loops.softmax(logits[winner, i].tolist(), temperature)
            share[n, winner] += 1 / samples
    return targets, share


@pytest.mark.parametrize("confidence", ["maximum", "true_class"])
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shape=st.sampled_from([(3, 4, 3), (6, 20, 5)]),
    beta=st.none() | st.floats(0, 3),
    temperature=st.floats(0.8, 4),
)
def test_max_confidence_equals_loops(confidence, seed, shape, beta, temperature) -> None:
    logits = draw(*shape, seed=seed)
    labels = numpy_generator(seed, "labels").integers(0, shape[2], shape[1])
    strategy = MaxConfidence(beta=beta, confidence=confidence, temperature=temperature)
    guidance = strategy.fuse(knowledge_of(logits, labels), {})
    targets, share = by_loops(
        logits,
        labels=labels.tolist() if confidence == "true_class" else None,
        beta=beta,
        temperature=temperature,
    )
    assert_allclose(guidance.targets, targets, atol=1e-6)
    assert_allclose(guidance.weights, share, atol=1e-12)
    assert guidance.targets.dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    clients=st.integers(1, 6),
    samples=st.integers(1, 6),
    classes=st.integers(1, 5),
    beta=st.one_of(st.none(), st.floats(0, 50)),
    spread=st.sampled_from([0.5, 5.0, 1e3]),
)
def test_the_most_confident_client_is_its_own_teacher(seed, clients, samples, classes, beta, spread) -> None:
    logits = draw(clients, samples, classes, seed, spread)
    guidance = MaxConfidence(beta=beta).fuse(knowledge_of(logits), {})
    q = softmax(logits)
    confidence = q.max(axis=-1)
    own = guidance.targets.max(axis=-1)
    if beta is None:
        assert_array_equal(own, np.broadcast_to(confidence.max(axis=0), own.shape))
    # Nobody is ever taught by somebody less sure, whatever the weights: nobody outweighs the client itself.
    assert (own >= confidence - 1e-6).all()
    surest = confidence > np.where(np.eye(clients, dtype=bool)[..., None], -1, confidence[None]).max(axis=1)
    assert_array_equal(guidance.targets[surest], q[surest])
    assert_allclose(guidance.weights.sum(axis=1), 1.0)

    if spread < 100:  # beyond, several are sure to the last bit: the first of them teaches the others
        order = numpy_generator(seed, "permutation").permutation(clients)
        permuted = MaxConfidence(beta=beta).fuse(knowledge_of(logits[order]), {})
        assert_allclose(permuted.targets, guidance.targets[order], atol=1e-6)


def test_equally_confident_clients_keep_their_prediction() -> None:
    logits = np.array([[[5, 0, 0]], [[0, 5, 0]], [[0, 0, 5]]], dtype=np.float32)
    guidance = MaxConfidence().fuse(knowledge_of(logits), {})
    assert_array_equal(guidance.targets, softmax(logits))
    assert_array_equal(guidance.weights, np.eye(3))


def test_a_confident_error_wins_only_without_labels() -> None:
    logits = np.array([[[2, 0, 0]], [[0, 9, 0]]], dtype=np.float32)  # the label is 0
    blind = MaxConfidence().fuse(knowledge_of(logits), {})
    seeing = MaxConfidence(confidence="true_class").fuse(knowledge_of(logits, np.array([0])), {})
    assert_array_equal(blind.targets.argmax(axis=-1), [[1], [1]])
    assert_array_equal(seeing.targets.argmax(axis=-1), [[0], [0]])


def test_a_large_beta_gives_self_distillation() -> None:
    logits = draw(5, 9, 4)
    guidance = MaxConfidence(beta=1e300).fuse(knowledge_of(logits), {})
    assert_array_equal(guidance.targets, softmax(logits))


def test_an_absent_client_teaches_no_other() -> None:
    logits = draw(5, 8, 4)
    guidance = MaxConfidence().fuse(knowledge_of(logits[[0, 2, 4]], clients=(0, 2, 4)), {})
    assert_allclose(guidance.targets, by_loops(logits[[0, 2, 4]])[0], atol=1e-6)


def test_labels_are_needed_only_for_supervised_confidence() -> None:
    assert MaxConfidence().capabilities.needs == frozenset()
    assert MaxConfidence(confidence="true_class").capabilities.needs == {"transfer_labels"}
