"""Bottleneck codes of logits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from rounds import draw_logits, guidance_for, knowledge_of
from small_views import SmallClient

from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.experimental.bottleneck import Bottleneck, best_coder, centred, decode, encode
from fedkd.fusion.math.probabilities import softmax
from fedkd.fusion.strategy import Knowledge

LOGITS = draw_logits(4, 12, 5, seed=4)


def round_of(strategy: Bottleneck, clients: dict[int, SmallClient], memory):
    uploads = [strategy.upload(client) for client in clients.values()]
    extra = {name: [upload[name] for upload in uploads] for name in uploads[0]}
    guidance = strategy.fuse(
        Knowledge(tuple(clients), None, np.full(len(clients), 10), payload=extra), memory
    )
    for row, client in enumerate(clients.values()):
        client.learn(strategy, guidance_for(row, guidance))
    return guidance, uploads


def federation() -> dict[int, SmallClient]:
    return {n: SmallClient(logits=own) for n, own in enumerate(LOGITS)}


def test_codes_drop_the_smallest_singular_values() -> None:
    z = centred(LOGITS).reshape(-1, 5).astype(np.float64)
    singular = np.linalg.svd(z - z.mean(axis=0), compute_uv=False)
    lost = []
    for width in range(1, 6):
        coder = best_coder(LOGITS, width)
        lost.append(float(((decode(coder, encode(coder, centred(LOGITS))).reshape(-1, 5) - z) ** 2).sum()))
        assert lost[-1] == pytest.approx((singular[width:] ** 2).sum(), rel=1e-4, abs=1e-8)
    assert lost[0] > lost[1] > lost[2] > 1e-3 > 1e-8 > lost[3]  # of five one is the mean of all


EYE = 6.0 * np.eye(5, dtype=np.float32)[:, None]
FEW = {
    "fewer predictions than classes": draw_logits(3, 1, 5, seed=1),
    "equal clients": np.repeat(draw_logits(1, 3, 5, seed=2), 4, axis=0),
    "a constant class": np.concatenate(
        [draw_logits(3, 1, 4, seed=3), np.ones((3, 1, 1), np.float32)], axis=2
    ),
    "each client certain of another class": EYE,
    "three of them": EYE[:3],
}


@pytest.mark.parametrize("logits", FEW.values(), ids=FEW)
@pytest.mark.parametrize("width", [1, 2, 4])
def test_low_rank_codes_ignore_order_and_repetition(logits, width) -> None:
    coder, draws = best_coder(logits, width), np.random.default_rng(0)
    z = centred(logits).reshape(-1, 5).astype(np.float64)
    assert len(coder) == 1 + min(width, np.linalg.matrix_rank(z - z.mean(axis=0), tol=1e-4))
    for _ in range(6):
        order = draws.permutation(len(logits))
        for same in (logits[order], np.concatenate([logits, logits[order]]), logits[order][:, ::-1]):
            assert_allclose(best_coder(same, width), coder, atol=1e-6)


def test_constant_predictions_have_an_empty_code() -> None:
    logits = np.tile(draw_logits(1, 1, 5), (3, 4, 1))
    strategy, clients = Bottleneck(width=2), {n: SmallClient(logits=own) for n, own in enumerate(logits)}
    first, _ = round_of(strategy, clients, {})
    second, uploads = round_of(strategy, clients, first.memory)
    assert uploads[0]["codes"].shape == (4, 0) and second.memory["coder"].shape == (1, 5)
    for client in clients.values():
        for targets, _ in client.distilled:
            assert_allclose(targets, softmax(logits[0]), rtol=1e-5)


@pytest.mark.parametrize("width", [4, 5, 9])
def test_full_width_codes_equal_knfu(width) -> None:
    strategy, clients = Bottleneck(beta=1.0, width=width), federation()
    expected = KnFu(beta=1.0).fuse(knowledge_of(LOGITS), {})
    first, uploads = round_of(strategy, clients, {})
    assert uploads[0]["whole_logits"].shape == (12, 5) and uploads[0]["codes"].size == 0
    second, uploads = round_of(strategy, clients, first.memory)
    assert uploads[0]["whole_logits"].size == 0 and uploads[0]["codes"].shape == (12, 4)
    for n, client in clients.items():
        for targets, _ in client.distilled:
            assert_allclose(targets, expected.targets[n], rtol=1e-3, atol=1e-5)
    assert_allclose(second.weights, expected.weights, rtol=1e-4)


def test_wider_codes_approximate_better() -> None:
    expected, errors = KnFu(beta=1.0).fuse(knowledge_of(LOGITS), {}).targets, []
    for width in (1, 2, 3, 4):
        clients = federation()
        round_of(Bottleneck(beta=1.0, width=width), clients, {})
        errors.append(max(np.abs(c.distilled[0][0] - expected[n]).max() for n, c in clients.items()))
    assert errors[0] > errors[1] > errors[2] > errors[3]


def test_full_logits_are_sent_at_the_set_interval() -> None:
    strategy, clients, memory = Bottleneck(width=2, refresh=3), federation(), {}
    whole = []
    for _ in range(7):
        guidance, uploads = round_of(strategy, clients, memory)
        memory = guidance.memory
        whole.append(len(uploads[0]["whole_logits"]) > 0)
    assert whole == [True, False, False, True, False, False, True]


def test_clients_with_an_outdated_code_send_full_logits() -> None:
    strategy, clients = Bottleneck(width=2), federation()
    first, _ = round_of(strategy, clients, {})
    clients[1].memory["coder"] = 2 * clients[1].memory["coder"]
    second, _ = round_of(strategy, clients, first.memory)
    assert second.personal[1] == {} and second.weights[1].tolist() == [0, 1, 0, 0]
    third, uploads = round_of(strategy, clients, second.memory)
    assert all(len(upload["whole_logits"]) for upload in uploads)
    assert all("codes" in own for own in third.personal)

    forgotten, _ = round_of(strategy, clients, {})  # as where a task begins
    assert forgotten.memory == {} and all(client.memory["coder"].size == 0 for client in clients.values())


def test_a_new_client_is_decoded_among_the_others() -> None:
    strategy, clients = Bottleneck(width=2), federation()
    first, _ = round_of(strategy, clients, {})
    del clients[2].memory["coder"]
    second, _ = round_of(strategy, clients, first.memory)
    assert_array_equal(second.memory["coder"], first.memory["coder"])
    assert all("codes" in own for own in second.personal)
