"""Guidance of old tasks: for those whom the cache knows, the newest, once."""

from __future__ import annotations

import numpy as np
import pytest

from fedkd.fusion.distillation.dsfl import DSFL
from fedkd.fusion.distillation.knfu import KnFu
from fedkd.scenario.schema import CacheSettings
from fedkd.server.by_task import TaskwiseFusion
from fedkd.server.fusing import ServerKnowledge
from fedkd.server.knowledge_cache import Upload


def upload(round, seed):
    logits = np.random.default_rng(seed).standard_normal((5, 3)).astype(np.float32)
    return Upload(round, {"logits": logits}, 10)


def after_two_rounds(strategy, backward=True):
    """Client 0 meets task 0 first, 1 and 2 second; in the meantime 1 is at task 1, and 2 away."""
    fusing = TaskwiseFusion(strategy, lambda task: ServerKnowledge(), CacheSettings(), backward=backward)
    fusing.move({0: 0, 1: 1, 2: 0})
    fusing.fuse(1, {0: upload(1, 0), 1: upload(1, 1)}, range(3))
    fusing.move({0: 1, 1: 0, 2: 0})
    sent = fusing.fuse(2, {0: upload(2, 2), 1: upload(2, 3)}, range(3))
    return fusing, sent


@pytest.mark.parametrize("strategy", [DSFL(), KnFu()])
def test_clients_at_later_tasks_receive_targets_of_old_tasks(strategy):
    fusing, sent = after_two_rounds(strategy)
    off, sent_off = after_two_rounds(strategy, backward=False)
    assert sent == sent_off and off.take_old(0) == off.take_old(1) == {}
    found = fusing.take_old(0)
    assert list(found) == [0] and found[0].round == 2 and found[0].arrays["targets"].shape == (5, 3)
    own = fusing.of(1).mailbox.take(1).arrays["targets"]
    if isinstance(strategy, DSFL):  # which has one target for all
        np.testing.assert_array_equal(found[0].arrays["targets"], own)
    else:
        assert not np.array_equal(found[0].arrays["targets"], own)
    assert fusing.take_old(0) == {}, "taken"
    assert list(fusing.take_old(1)) == [1]
    assert fusing.take_old(2) == fusing.take_old(None) == {}, "of whom nothing is known"


def test_the_newest_targets_wait_and_survive_a_checkpoint():
    fusing, _ = after_two_rounds(KnFu())
    fusing.fuse(3, {1: upload(3, 4)}, range(3))
    again = TaskwiseFusion(KnFu(), lambda task: ServerKnowledge(), CacheSettings(), backward=True)
    again.move({0: 1, 1: 0, 2: 0})
    again.restore(fusing.state())
    one, other = fusing.take_old(0)[0], again.take_old(0)[0]
    assert one.round == other.round == 3
    np.testing.assert_array_equal(one.arrays["targets"], other.arrays["targets"])
