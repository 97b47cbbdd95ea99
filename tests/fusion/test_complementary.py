"""`complementary`: weights by knowledge that the receiver lacks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from rounds import draw_logits, knowledge_of

from fedkd.fusion.distillation.complement import complement
from fedkd.fusion.experimental.complementary import Complementary
from fedkd.fusion.math.probabilities import softmax
from fedkd.randomness import numpy_generator

LABELS = numpy_generator(0, "labels").integers(0, 3, 40)


@pytest.mark.parametrize("judge", ["labels", "confidence"])
def test_complementary_equals_loops(judge) -> None:
    logits, q = draw_logits(6, 40, 3), softmax(draw_logits(6, 40, 3).astype(np.float64))
    guidance = Complementary(judge=judge, teachers=2).fuse(knowledge_of(logits, labels=LABELS), {})
    said = logits.argmax(axis=-1)
    for n in range(6):
        rho = {}
        for m in set(range(6)) - {n}:
            if judge == "labels":
                proved = [said[m, i] == LABELS[i] != said[n, i] for i in range(40)]
            else:
                proved = [said[m, i] != said[n, i] and max(q[m, i]) > max(q[n, i]) for i in range(40)]
            rho[m] = sum(proved)
        least = sorted(rho.values())[-2]
        heard = [n] + [m for m in rho if rho[m] >= least]
        assert_allclose(guidance.weights[n], [(m in heard) / len(heard) for m in range(6)])
        assert_allclose(guidance.targets[n], q[heard].mean(axis=0), atol=1e-6)


def test_the_difference_of_mutual_weights_is_that_of_accuracies() -> None:
    right = numpy_generator(0, "right").random((5, 50)) < 0.6
    rho, accuracy = complement(right), right.mean(axis=1)
    assert_allclose(rho - rho.T, accuracy[None, :] - accuracy[:, None], atol=1e-12)
    assert_array_equal(np.diag(rho), 0.0)


def test_senders_without_complementary_knowledge_get_no_weight() -> None:
    """A client that is right wherever any other is learns from itself, and they from it."""
    logits = np.array([[[3, 0], [3, 0]], [[3, 0], [0, 3]], [[0, 3], [0, 3]]], dtype=np.float32)
    guidance = Complementary().fuse(knowledge_of(logits, labels=np.array([0, 0])), {})
    assert_allclose(guidance.weights, [[1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])
    for strategy, rows in ((Complementary(), 1), (Complementary(teachers=0), 3)):
        told = strategy.fuse(knowledge_of(logits[:rows], labels=np.array([0, 0])), {})
        assert_allclose(told.targets, softmax(logits[:rows]), atol=1e-7)


def test_labels_are_needed_only_for_the_supervised_variant() -> None:
    assert Complementary().capabilities.needs == {"transfer_labels"}
    assert Complementary(judge="confidence").capabilities.needs == frozenset()
