"""Selective-FD: who votes on what, what the server keeps."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small_views import SmallClient

from fedkd.fusion.distillation.selective_fd import SelectiveFD
from fedkd.fusion.strategy import Knowledge
from fedkd.randomness import numpy_generator

LOGITS = numpy_generator(0, "test logits").normal(0, 2, (3, 4, 3)).astype(np.float32)
VOTES = ([0, 2], [0, 1, 2], [])


def knowledge_of(samples, logits, clients=None) -> Knowledge:
    return Knowledge(
        clients=tuple(range(len(samples))) if clients is None else clients,
        logits=None,
        samples=np.full(len(samples), 10),
        payload={
            "samples": [np.array(indices, dtype=np.int32) for indices in samples],
            "sample_logits": [z[indices] for z, indices in zip(logits, map(_index, samples), strict=True)],
        },
    )


def _index(indices) -> np.ndarray:
    return np.array(indices, dtype=np.int64)


def softmax(row) -> list[float]:
    exps = [math.exp(float(z)) for z in row]
    return [e / math.fsum(exps) for e in exps]


def mean_of_votes(samples, logits) -> dict[int, list[float]]:
    means = {}
    for i in range(4):
        voters = [n for n, indices in enumerate(samples) if i in indices]
        if voters:
            rows = [softmax(logits[n, i]) for n in voters]
            means[i] = [math.fsum(column) / len(voters) for column in zip(*rows, strict=True)]
    return means


@pytest.mark.parametrize("limit", [0.2, 0.6, 2.0])
def test_the_mean_is_over_voters_and_drops_ambiguous_samples(limit) -> None:
    means = mean_of_votes(VOTES, LOGITS)
    kept = {i: q for i, q in means.items() if 2 * (1 - max(q)) <= limit}
    assert limit == 2.0 or 0 < len(kept) < len(means)
    guidance = SelectiveFD(ambiguity=limit).fuse(knowledge_of(VOTES, LOGITS), {})
    assert_array_equal(guidance.shared["samples"], sorted(kept))
    assert_allclose(guidance.targets, [kept[i] for i in sorted(kept)], rtol=1e-6)
    assert guidance.targets.dtype == np.float32 and guidance.shared["samples"].dtype == np.int32


def test_older_votes_count_less() -> None:
    fresh = np.array([1.0, 0.5, 0.25])
    guidance = SelectiveFD(ambiguity=2).fuse(replace(knowledge_of(VOTES, LOGITS), freshness=fresh), {})
    for sample, target in zip(guidance.shared["samples"], guidance.targets, strict=True):
        who = [n for n, votes in enumerate(VOTES) if sample in votes]
        q = np.array([softmax(LOGITS[n, sample]) for n in who])
        assert_allclose(target, fresh[who] @ q / fresh[who].sum(), rtol=1e-6)


@pytest.mark.parametrize("votes", [([], [], []), ([],)])
def test_without_votes_there_are_no_targets(votes) -> None:
    assert SelectiveFD().fuse(knowledge_of(votes, LOGITS[: len(votes)]), {}).targets is None


def test_fully_ambiguous_samples_give_no_targets() -> None:
    flat = np.zeros((2, 4, 3), dtype=np.float32)
    assert SelectiveFD(ambiguity=1.0).fuse(knowledge_of(([0, 3], [3]), flat), {}).targets is None


def test_one_client_with_one_float16_sample_works() -> None:
    coarse = np.array([[[np.inf, 0, 0]]], dtype=np.float16)
    guidance = SelectiveFD().fuse(knowledge_of(([0],), coarse), {})
    assert_array_equal(guidance.targets, [[1, 0, 0]])


@pytest.mark.parametrize("selector", ["energy", "confidence"])
def test_a_client_votes_above_its_private_quantile(selector) -> None:
    private = numpy_generator(1, "test private").normal(0, 2, (11, 3)).astype(np.float32)

    def score(row) -> float:
        total = math.fsum(math.exp(float(z)) for z in row)
        return math.log(total) if selector == "energy" else math.log(max(softmax(row)))

    own = sorted(score(row) for row in private)
    client = SmallClient(logits=LOGITS[0], private_logits=private)
    for quantile, least in [(0.0, own[0]), (0.3, own[3]), (0.95, (own[9] + own[10]) / 2)]:
        upload = SelectiveFD(selector=selector, quantile=quantile).upload(client)
        expected = [i for i in range(4) if score(LOGITS[0, i]) >= least]
        assert_array_equal(upload["samples"], expected)
        assert_array_equal(upload["sample_logits"], LOGITS[0, expected])
        assert upload["samples"].dtype == np.int32


def test_an_absolute_threshold_needs_no_private_samples() -> None:
    client = SmallClient(logits=np.array([[0.0, 0.0], [4.0, 0.0], [2.0, 0.0]], dtype=np.float32))
    upload = SelectiveFD(selector="confidence", threshold=math.log(0.9)).upload(client)
    assert_array_equal(upload["samples"], [1])  # σ(4) = 0.98, σ(2) = 0.88
    assert_array_equal(SelectiveFD(threshold=-1e9).upload(client)["samples"], [0, 1, 2])
    nothing = SelectiveFD(threshold=1e9).upload(client)
    assert nothing["samples"].shape == (0,) and nothing["sample_logits"].shape == (0, 2)


@pytest.mark.parametrize("selector", ["energy", "confidence"])
@pytest.mark.parametrize("quantile", [0.0, 1.0])
def test_a_client_without_private_samples_does_not_vote(selector, quantile) -> None:
    client = SmallClient(logits=LOGITS[0], private_logits=LOGITS[0][:0])
    upload = SelectiveFD(selector=selector, quantile=quantile).upload(client)
    assert upload["samples"].shape == (0,) and upload["samples"].dtype == np.int32
    assert upload["sample_logits"].shape == (0, LOGITS.shape[2])


def test_a_client_distils_the_kept_samples() -> None:
    guidance = SelectiveFD().fuse(knowledge_of(([1], [1]), np.full((2, 4, 3), [9, 0, 0], np.float32)), {})
    client = SmallClient()
    client.learn(SelectiveFD(), {"targets": guidance.targets, **guidance.shared})
    ((targets, samples),) = client.distilled
    assert_array_equal(samples, [1])
    assert targets is guidance.targets
