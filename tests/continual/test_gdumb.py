"""GDumb's sampler and what is trained on; cumulative."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from small_learning import fit_task, small_stream, start

from fedkd.continual import episodes
from fedkd.continual.cumulative import Cumulative
from fedkd.continual.gdumb import GDumb, greedily_balanced
from fedkd.models.mlp import mlp
from fedkd.randomness import seeded_torch


def network():
    with seeded_torch(4):
        return mlp((6,), 6, hidden=(8,))


def sampled(classes, size, held=0):
    kept = greedily_balanced(classes, held, size, torch.Generator().manual_seed(0))
    assert len(kept) == len(set(kept)) <= max(size, held) and kept == sorted(kept)
    return kept


def test_sampler_by_hand():
    # Room for 4. Class a fills it; the first b takes the place of an a, and so does the second: then b has
    # its half, and the third b is turned away. The c takes one of the largest class, the first of equal ones.
    kept = sampled("aaaabbbc", 4)
    assert Counter("aaaabbbc"[n] for n in kept) == {"a": 1, "b": 2, "c": 1}
    assert 6 not in kept and 7 in kept
    # Whoever is turned away stays away, and there is nothing to choose where everything fits.
    assert sampled("aab", 4) == [0, 1, 2]
    assert sampled("aaaaaa", 3) == [0, 1, 2]
    assert sampled("aaab", 3, held=3) == sampled("aaab", 3)


@pytest.mark.parametrize(("classes", "size"), [(3, 12), (4, 10), (7, 5)])
def test_classes_share_the_memory_evenly(classes, size):
    stream = torch.randint(classes, (400,), generator=torch.Generator().manual_seed(1)).tolist()
    counts = Counter(stream[n] for n in sampled(stream, size))
    assert sum(counts.values()) == size
    if size >= classes:
        # Strictly fewer than k / classes is enough to be taken in.
        assert len(counts) == classes and max(counts.values()) - min(counts.values()) <= 1


def test_every_task_begins_with_the_same_weights_and_learns_from_the_memory_alone():
    stream, net = small_stream(3), network()
    learning = start(GDumb(memory_size=10), net, stream)
    initial = [p.detach().clone() for p in net.parameters()]
    for task in range(3):
        learning.enter(task)
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), initial, strict=True))
        assert list(learning.learner.training_tasks(learning.context)) == []
        found = learning.learner.rehearsed(learning.context)
        pairs = Counter(zip(found.tasks.tolist(), found.labels.tolist(), strict=True))
        assert len(found.labels) == 10 and len(pairs) == 2 * (task + 1)
        assert max(pairs.values()) - min(pairs.values()) <= 1
        for sample, label, of_task in zip(*found, strict=True):
            (at,) = (stream[of_task][0] == sample).all(1).nonzero()[:, 0].tolist()
            assert stream[of_task][1][at] == label
        fit_task(learning, stream, task)
        learning.end()
    assert learning.context.memory[episodes.SAMPLES].shape == (10, 6)


def test_cumulative_goes_on_where_it_is():
    stream, net = small_stream(2), network()
    learning = start(Cumulative(), net, stream)
    fit_task(learning, stream, 0)
    learning.end()
    before = [p.detach().clone() for p in net.parameters()]
    learning.enter(1)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert tuple(learning.learner.training_tasks(learning.context)) == (0, 1)
    assert learning.context.stored_bytes() == 0
