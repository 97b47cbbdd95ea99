"""Fusion of filtered knowledge."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.clients.upload.stages import PREDICTIONS_SENT
from fedkd.fusion.distillation.comet import Comet
from fedkd.fusion.distillation.confidence import normalised_certainty
from fedkd.fusion.distillation.dsfl import DSFL
from fedkd.fusion.distillation.fedmd import FedMD
from fedkd.fusion.distillation.filters import agreement, mean_class_shares, relevance
from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.distillation.max_confidence import MaxConfidence
from fedkd.fusion.math.probabilities import softmax
from fedkd.fusion.strategy import Knowledge
from fedkd.randomness import numpy_generator
from fedkd.scenario.schema import Filter
from fedkd.server.filtering import fuse_filtered
from fedkd.server.guidance import check_guidance, tables_of

DRAWS = numpy_generator(1, "test filtering")
LOGITS = (DRAWS.normal(0, 1.5, (4, 1, 3)) + DRAWS.normal(0, 1.5, (4, 10, 3))).astype(np.float32)
LOGITS[:, 7] = 0.01  # nobody knows sample 7
Q = softmax(LOGITS)
SURE = Filter(by="confidence", threshold=0.3)
BORNE_OUT = Filter(by="agreement", threshold=0.4)
WANTED = Filter(by="relevance", threshold=0.15)


def knowledge(logits=LOGITS, **fields) -> Knowledge:
    return Knowledge(tuple(range(len(logits))), logits, np.full(len(logits), 10), **fields)


def fuse(strategy, *filters, known=None):
    known = knowledge() if known is None else known
    filtered = fuse_filtered(strategy, known, {}, filters)
    check_guidance(filtered[0], known)
    return filtered, tables_of(filtered[0], known)[0]


@pytest.mark.parametrize("strategy", [KnFu(beta=1.0), DSFL(), FedMD(), MaxConfidence()])
@pytest.mark.parametrize("by", ["confidence", "agreement"])
def test_a_threshold_of_zero_changes_no_bit(strategy, by) -> None:
    (guidance, heard), _ = fuse(strategy, Filter(by=by, threshold=0.0))
    plain = strategy.fuse(knowledge(), {})
    assert heard == 1.0
    assert guidance.targets.tobytes() == plain.targets.tobytes()


@pytest.mark.parametrize("filters", [[SURE], [SURE, BORNE_OUT], [SURE, WANTED, BORNE_OUT]])
def test_mixing_strategies_mix_unfiltered_samples(filters) -> None:
    strategy = KnFu(beta=1.0)
    (_, heard), tables = fuse(strategy, *filters)
    p = mean_class_shares(Q, np.ones(Q.shape[:2], dtype=bool))
    same = normalised_certainty(Q) >= 0.3
    if BORNE_OUT in filters:
        same &= agreement(Q, p, np.ones(Q.shape[:2], dtype=bool)) >= 0.4
    keeps = [same & (relevance(Q, p[n]) >= 0.15) if WANTED in filters else same for n in range(4)]
    # What a client seems to know is what it says where it is heard by anybody.
    anywhere = np.logical_or.reduce(keeps)
    own = np.stack([Q[m, anywhere[m]].mean(axis=0, dtype=np.float64) for m in range(4)]) + 1e-6
    own /= own.sum(axis=1, keepdims=True)
    assert heard == pytest.approx(np.mean(keeps))
    for n in range(4):
        w = np.array([np.exp(-(own[n] * np.log(own[n] / own[m])).sum()) for m in range(4)])
        taught = [i for i in range(10) if keeps[n][:, i].any()]
        assert 7 not in taught  # left out, not taught as uniform
        assert_array_equal(tables[n]["samples"], taught)
        for row, i in zip(tables[n]["targets"], taught, strict=True):
            left = w * keeps[n][:, i]
            assert_allclose(row, left @ Q[:, i] / left.sum(), rtol=2e-4)


@pytest.mark.parametrize("strategy", [DSFL(sharpen="mean"), DSFL(), FedMD()])
def test_other_strategies_fuse_the_remaining_clients(strategy) -> None:
    _, tables = fuse(strategy, SURE)
    keep = normalised_certainty(Q) >= 0.3
    taught = np.flatnonzero(keep.any(axis=0))
    assert_array_equal(tables[0]["samples"], taught)
    for i, row in zip(taught, tables[0]["targets"], strict=True):
        of_left = strategy.fuse(knowledge(LOGITS[keep[:, i]][:, [i]]), {})
        assert_allclose(row, of_left.targets[0], rtol=1e-4, atol=1e-6)


def test_personal_targets_are_left_out_for_all() -> None:
    _, tables = fuse(MaxConfidence(), SURE)
    assert {len(table["targets"]) for table in tables.values()} == {9}


def test_filtering_everything_gives_no_guidance() -> None:
    nobody = Filter(by="confidence", threshold=1.0)
    for strategy in (KnFu(), DSFL(), Comet()):
        (_, heard), tables = fuse(strategy, nobody)
        assert heard == 0.0 and not any(tables.values())


def test_filtered_samples_are_the_requested_ones() -> None:
    asked = np.arange(10) * 3
    _, tables = fuse(DSFL(), SURE, known=knowledge(request=asked))
    assert_array_equal(tables[0]["samples"], asked[np.arange(10) != 7])
    _, tables = fuse(KnFu(), SURE, known=knowledge(request=asked))
    assert set(tables[0]["samples"]) <= set(asked) and 21 not in tables[0]["samples"]


@pytest.mark.parametrize("strategy", [KnFu(beta=1.0), DSFL()])
def test_unsent_samples_equal_samples_that_the_server_drops(strategy) -> None:
    keep = normalised_certainty(Q) >= 0.3
    sent = knowledge(
        np.where(keep[..., None], LOGITS, 0), payload={PREDICTIONS_SENT: list(keep.astype(np.uint8))}
    )
    at_upload, tables = fuse(strategy, known=sent)
    at_fusion, expected = fuse(strategy, SURE)
    assert at_upload[1] == at_fusion[1]
    for client, table in expected.items():
        assert_array_equal(tables[client]["targets"], table["targets"])
        assert_array_equal(tables[client]["samples"], table["samples"])
