"""The server's cache of knowledge from absent clients and other tasks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.clients.upload.stages import PREDICTIONS_SENT
from fedkd.fusion.distillation.dsfl import DSFL
from fedkd.fusion.distillation.fedmd import FedMD
from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.kinds import Kind
from fedkd.fusion.math.probabilities import softmax
from fedkd.scenario.schema import CacheSettings
from fedkd.server.by_task import TaskwiseFusion
from fedkd.server.fusing import ServerKnowledge
from fedkd.server.knowledge_cache import KnowledgeCache, Upload, evict, fade

M, C = 6, 3
KINDS = {"logits": Kind.TRANSFER_LOGITS, "label_counts": Kind.LABEL_COUNTS}


def upload(client: int, round: int, dtype: str = "float32") -> Upload:
    generator = np.random.default_rng([client, round])
    logits = (2 * generator.normal(size=(M, C))).astype(dtype)
    return Upload(round, {"logits": logits, "label_counts": generator.integers(0, 9, C)}, 10 * (client + 1))


def known(task: int) -> ServerKnowledge:
    return ServerKnowledge()


def targets(fusing: TaskwiseFusion, client: int) -> np.ndarray:
    return fusing.of(client).mailbox.take(client).arrays["targets"]


def faded(uploads: dict[int, Upload], round: int, decay: float, kinds: dict[str, Kind]) -> dict[int, Upload]:
    factors = {client: decay ** (round - own.round) for client, own in uploads.items()}
    return fade(uploads, factors, [own for own in uploads.values() if own.round == round], kinds)


# Fading ---------------------------------------------------------------------------------------------------


def test_a_mean_of_probabilities_weighs_old_knowledge_less():
    ages, rho = {0: 4, 1: 0, 2: 0, 3: 1}, 0.9
    uploads = {client: upload(client, 5 - age) for client, age in ages.items()}
    shown = faded(uploads, 5, rho, KINDS)
    ours = np.mean([softmax(shown[n].arrays["logits"]) for n in ages], axis=0)
    # By hand: (Σ f_m q_m + what is missing of all the f, shared among the two that are new) / 4.
    factors = {n: rho**age for n, age in ages.items()}
    missing = sum(1 - f for f in factors.values())
    weights = np.array([factors[n] + (missing / 2 if ages[n] == 0 else 0.0) for n in ages]) / 4
    q = np.array([np.exp(uploads[n].arrays["logits"].astype(np.float64)) for n in ages])
    q /= q.sum(axis=-1, keepdims=True)
    assert_allclose(ours, np.einsum("n,nmc->mc", weights, q), rtol=2e-6)
    assert weights.sum() == pytest.approx(1.0) and weights[0] < weights[3] < 0.25 < weights[1]


def test_old_predictions_decay_towards_sent_samples_only():
    """Rows that a client has kept to itself are there as zeros, which would count as even predictions."""
    sent = [np.array(rows, dtype=np.uint8) for rows in ([1] * M, [1, 0, 1, 1, 0, 0], [1, 1, 0, 1, 0, 0])]
    uploads = {}
    for client, rows in enumerate(sent):
        whole = upload(client, 1 + (client > 0))
        kept = {"logits": whole.arrays["logits"] * rows[:, None], PREDICTIONS_SENT: rows}
        uploads[client] = replace(whole, arrays=whole.arrays | kept)
    q = [softmax(own.arrays["logits"]) for own in uploads.values()]
    shown = softmax(faded(uploads, 2, 0.25, KINDS)[0].arrays["logits"])
    for row, others in enumerate([[1, 2], [2], [1], [1, 2], [], []]):
        expected = (
            0.25 * q[0][row] + 0.75 * np.mean([q[n][row] for n in others], axis=0) if others else q[0][row]
        )
        assert_allclose(shown[row], expected, rtol=1e-5)


def test_sample_counts_decay_with_age():
    old, new = upload(0, 1), upload(1, 3)
    shown = faded({0: old, 1: new}, 3, 0.5, KINDS)
    assert (shown[0].samples, shown[1].samples) == (3, 20)  # ⌈10 / 4⌉
    assert_allclose(shown[0].arrays["label_counts"], old.arrays["label_counts"] / 4)
    assert shown[1] is new


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_knowledge_is_unchanged_without_decay_or_age(dtype):
    uploads = {0: upload(0, 1, dtype), 1: upload(1, 3, dtype)}
    assert faded(uploads, 3, 1.0, KINDS) == uploads
    assert faded({1: uploads[1]}, 3, 0.5, KINDS) == {1: uploads[1]}
    assert faded(uploads, 3, 0.5, KINDS)[0].arrays["logits"].dtype == dtype


def test_very_old_knowledge_decays_to_the_current_mean():
    uploads = {0: upload(0, 1), 1: upload(1, 900), 2: upload(2, 900)}
    shown = faded(uploads, 900, 0.9, KINDS)
    now = np.mean([softmax(uploads[n].arrays["logits"]) for n in (1, 2)], axis=0)
    assert_allclose(softmax(shown[0].arrays["logits"]), now, rtol=1e-5)
    assert shown[0].samples == 1


# Keeping --------------------------------------------------------------------------------------------------


def test_a_late_client_learns_from_earlier_clients_of_its_task():
    fusing = TaskwiseFusion(FedMD(), known, CacheSettings(decay=1.0))
    first = {n: upload(n, 1) for n in (0, 1)}
    fusing.move({0: 0, 1: 0, 2: 1})
    fusing.fuse(1, first | {2: upload(2, 1)}, range(3))
    fusing.move({0: 1, 1: 1, 2: 0})
    late = upload(2, 2)
    fusing.fuse(2, {2: late}, range(3))
    wanted = np.mean([first[0].arrays["logits"], first[1].arrays["logits"], late.arrays["logits"]], axis=0)
    assert_allclose(targets(fusing, 2), wanted, rtol=1e-6)
    assert fusing.report().clients == (0, 1, 2) and fusing.report().present == (2,)


def test_without_a_cache_a_late_client_learns_alone():
    fusing = TaskwiseFusion(FedMD(), known)
    fusing.move({0: 0, 1: 1})
    fusing.fuse(1, {0: upload(0, 1)}, range(2))
    fusing.move({0: 1, 1: 0})
    fusing.fuse(2, {1: upload(1, 2)}, range(2))
    assert_array_equal(targets(fusing, 1), upload(1, 2).arrays["logits"])
    assert fusing.cache_bytes() is None


def test_clients_at_other_tasks_receive_no_guidance():
    fusing = TaskwiseFusion(KnFu(beta=1.0), known, CacheSettings())
    fusing.move({0: 0, 1: 0})
    fusing.fuse(1, {n: upload(n, 1) for n in (0, 1)}, range(2))
    for n in (0, 1):
        fusing.of(n).mailbox.take(n)
    fusing.move({0: 1, 1: 0})
    fusing.fuse(2, {0: upload(0, 2), 1: upload(1, 2)}, range(2))
    assert fusing.at(0).mailbox.take(0) is None
    assert fusing.at(0).mailbox.take(1) is not None


def test_strategies_with_their_own_ageing_receive_raw_knowledge():
    fusing = TaskwiseFusion(KnFu(beta=1.0, stale_decay=0.5), known, CacheSettings(decay=0.1))
    alone = TaskwiseFusion(KnFu(beta=1.0, stale_decay=0.5), known)
    for each in (fusing, alone):
        each.move({0: 0, 1: 0})
        each.fuse(1, {n: upload(n, 1) for n in (0, 1)}, range(2))
        each.fuse(3, {1: upload(1, 3)}, range(2))
    assert_array_equal(targets(fusing, 1), targets(alone, 1))


def test_the_oldest_entry_is_evicted_first():
    caches = {0: KnowledgeCache(), 1: KnowledgeCache()}
    caches[0].put({0: upload(0, 2), 1: upload(1, 1), 2: upload(2, 1)})
    caches[1].put({0: upload(0, 3)})
    each = upload(0, 1).size
    assert caches[0].size == 3 * each
    left = []
    for most in (4, 3, 2.5, 1, 0):
        evict(caches, int(most * each))
        left.append([(task, client) for task, shelf in caches.items() for client in shelf.all()])
    assert left == [
        [(0, 0), (0, 1), (0, 2), (1, 0)],
        [(0, 0), (0, 1), (1, 0)],
        [(0, 0), (1, 0)],
        [(1, 0)],
        [],
    ]


def test_the_size_limit_holds_over_all_tasks():
    each = upload(0, 1).size
    fusing = TaskwiseFusion(FedMD(), known, CacheSettings(megabytes=2.5 * each / 1e6))
    fusing.move({0: 0, 1: 0, 2: 1})
    fusing.fuse(1, {n: upload(n, 1) for n in range(3)}, range(3))
    assert fusing.cache_bytes() == 2 * each


def test_a_restored_cache_continues_exactly():
    straight, restored = (TaskwiseFusion(DSFL(), known, CacheSettings(decay=0.9)) for _ in range(2))
    straight.move({0: 0, 1: 0, 2: 1})
    straight.fuse(1, {n: upload(n, 1) for n in range(3)}, range(3))
    for fusing in (straight, restored):
        fusing.move({0: 1, 1: 1, 2: 1})
    restored.restore(straight.state())
    assert restored.cache_bytes() == straight.cache_bytes() > 0
    for fusing in (straight, restored):
        fusing.move({0: 1, 1: 1, 2: 0})
        fusing.fuse(2, {n: upload(n, 2) for n in range(3)}, range(3))
    for n in range(3):
        assert_array_equal(targets(straight, n), targets(restored, n))


def test_asynchronous_fusion_weighs_knowledge_by_age():
    """KnFu's weights are ∝ exp(−βd) s(age); what others fuse fades to what has just come, as s says."""

    def fused(strategy) -> TaskwiseFusion:
        fusing = TaskwiseFusion(strategy, known, exponent=1.0)
        fusing.fuse(1, {0: upload(0, 1)}, range(3))
        fusing.fuse(2, {1: upload(1, 2)}, range(3))
        fusing.fuse(4, {2: upload(2, 3)}, range(3))  # it began a round ago
        return fusing

    counts = 1 / (1 + np.array([3, 2, 1]))  # of age 3, 2 and 1
    report = fused(KnFu(beta=0.0)).report()
    assert report is not None and report.present == (2,)
    assert_allclose(report.weights[0], counts / counts.sum(), rtol=1e-12)
    q = [softmax(upload(client, client + 1).arrays["logits"]) for client in range(3)]
    faded_q = [own * count + (1 - count) * q[2] for own, count in zip(q, counts, strict=True)]
    assert_allclose(targets(fused(DSFL(sharpen="mean")), 2), np.mean(faded_q, axis=0), rtol=1e-5)
