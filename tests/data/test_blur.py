"""Blurry streams move a share of samples to other tasks."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from fedkd.data.federated import ClientData
from fedkd.data.streams.stream import blurred


def tasks_of(*sizes):
    """Return tasks whose samples carry numbers of their own, and whose labels are the tasks."""
    first = np.cumsum((0, *sizes))
    none = np.zeros((0, 1))
    return [
        ClientData(
            np.arange(a, b, dtype=np.float32)[:, None], np.full(b - a, t), none, none[:, 0], none, none,
            none[:, 0], len(sizes), (1,),
        )
        for t, (a, b) in enumerate(pairwise(first))
    ]  # fmt: skip


@pytest.mark.parametrize("sizes", [(40, 40, 40, 40), (30, 7, 12)])
def test_a_blurry_stream_moves_a_share_of_each_task(sizes):
    tasks = tasks_of(*sizes)
    made = [blurred(tasks, t, 0.3, seed=1, client=0) for t in range(len(sizes))]
    assert sorted(np.concatenate([data.train_x[:, 0] for data in made])) == list(range(sum(sizes)))
    for t, data in enumerate(made):
        of_sample = np.concatenate([task.train_y for task in tasks])[data.train_x[:, 0].astype(int)]
        assert np.array_equal(of_sample, data.train_y)
        counts = Counter(data.train_y.tolist())
        assert counts[t] == sizes[t] - int(0.3 * sizes[t] + 0.5)
        if len(set(sizes)) == 1:  # 12 that leave, four for each other task
            assert counts == {j: 28 if j == t else 4 for j in range(4)}


def test_blur_differs_by_client_and_repeats():
    tasks = tasks_of(40, 40)
    one, same, other = (blurred(tasks, 0, 0.5, seed=1, client=n).train_x for n in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert np.array_equal(blurred(tasks, 0, 0.0, seed=1, client=0).train_x, tasks[0].train_x)
