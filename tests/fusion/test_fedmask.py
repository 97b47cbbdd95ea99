"""FedMask on the server, by hand: votes, whose they are, and what nobody may train."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.errors import UserError
from fedkd.fusion.strategy import Knowledge
from fedkd.fusion.streams.fedmask import FedMask, log_odds
from fedkd.scenario.schema import CacheSettings
from fedkd.server.by_task import TaskwiseFusion
from fedkd.server.fusing import ServerKnowledge
from fedkd.server.knowledge_cache import Upload

FINGERPRINT = np.arange(8, dtype=np.uint8)
NOTHING = np.empty(0, dtype=np.uint8)


def uploads(*sent, taken=None, samples=None, fingerprints=None) -> Knowledge:
    extra = {"mask": list(sent), "fingerprint": fingerprints or [FINGERPRINT] * len(sent)}
    if taken is not None:
        extra["taken"] = list(taken)
    counts = np.array(samples or [1] * len(sent), dtype=np.int64)
    return Knowledge(clients=tuple(range(3, 3 + len(sent))), logits=None, samples=counts, payload=extra)


def packed(*bits: int) -> np.ndarray:
    return np.packbits(np.array(bits, dtype=bool))


def test_every_weight_counts_the_masks_that_include_it():
    masks = [
        packed(1, 1, 0, 0, 1, 0, 0, 0, 0, 1),
        packed(1, 0, 0, 1, 1, 0, 0, 0, 0, 0),
        packed(1, 0, 1, 0, 1),
    ]
    masks[2] = np.append(masks[2], np.uint8(0))
    shared = FedMask().fuse(uploads(*masks), {}).shared
    assert shared["votes"][:10].tolist() == [3, 1, 1, 1, 3, 0, 0, 0, 0, 1] and int(shared["voters"]) == 3
    # A byte a weight, padding included, until there are more voters than it can count.
    assert shared["votes"].nbytes == 16 and shared["votes"].dtype == np.uint8
    many = FedMask(weight_by_count=True).fuse(uploads(*masks, samples=[200, 60, 0]), {})
    assert many.shared["votes"][:5].tolist() == [261, 200, 1, 60, 261] and int(many.shared["voters"]) == 261
    assert many.shared["votes"].dtype == np.uint16
    assert_allclose(many.weights, np.tile(np.array([200, 60, 1]) / 261, (3, 1)))


def test_log_odds_equal_the_formula():
    found = log_odds(np.array([0.25, 0.5, 0.75, 0.0, 1.0]))
    assert_allclose(found, [-np.log(3), 0, np.log(3), -13.8155, 13.8155], rtol=1e-5)
    assert found[1] == 0.0  # where half of all have a weight nobody is overruled


def test_clients_with_fixed_masks_neither_vote_nor_receive():
    knowledge = uploads(packed(1, 0), NOTHING, packed(1, 1), fingerprints=[FINGERPRINT, NOTHING, FINGERPRINT])
    guidance = FedMask().fuse(knowledge, {})
    assert guidance.shared["votes"][:2].tolist() == [2, 1] and int(guidance.shared["voters"]) == 2
    assert_array_equal(guidance.weights, [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])
    quiet = FedMask().fuse(uploads(NOTHING, NOTHING), {})
    assert quiet.targets is None and not quiet.shared and quiet.weights is None


def test_weights_taken_by_one_client_are_fixed_for_all():
    own, masks = [packed(1, 0, 0, 1), NOTHING, packed(0, 0, 1, 1)], [packed(1)] * 3
    assert_array_equal(FedMask().fuse(uploads(*masks, taken=own), {}).shared["taken"], packed(1, 0, 1, 1))
    assert "taken" not in FedMask().fuse(uploads(*masks, taken=[NOTHING] * 3), {}).shared


def test_different_initial_weights_are_refused():
    other = FINGERPRINT[::-1].copy()
    with pytest.raises(UserError, match="those of client 3 and client 5 differ"):
        FedMask().fuse(uploads(*[packed(1)] * 3, fingerprints=[FINGERPRINT, FINGERPRINT, other]), {})


def test_the_knowledge_cache_serves_masks_to_late_clients():
    def sent(round: int, mask: np.ndarray) -> Upload:
        return Upload(round, {"mask": mask, "fingerprint": FINGERPRINT}, samples=8)

    strategy = FedMask(weight_by_count=True)
    fusing = TaskwiseFusion(strategy, lambda task: ServerKnowledge(), CacheSettings(decay=0.5))
    fusing.move({0: 0, 1: 1})
    fusing.fuse(1, {0: sent(1, packed(1, 1, 0))}, [0, 1])
    fusing.move({0: 1, 1: 0})
    fusing.fuse(2, {1: sent(2, packed(0, 1, 1))}, [0, 1])
    found = fusing.at(0).mailbox.take(1).arrays
    assert found["votes"][:3].tolist() == [4, 12, 8] and int(found["voters"]) == 12
