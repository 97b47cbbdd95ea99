from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from fedkd.errors import UserError
from fedkd.fusion.distillation.knfu import KnFu
from fedkd.fusion.experimental.path import Path, Router, mixed, train_router
from fedkd.fusion.registry import make_strategy
from fedkd.fusion.strategy import Knowledge


def drawn(seed: int = 0, senders: int = 4, samples: int = 6, classes: int = 3):
    draws = np.random.default_rng(seed)
    q = draws.dirichlet(np.ones(classes), (senders, samples))
    return draws, q, draws.dirichlet(np.ones(classes), samples), draws.normal(size=(classes, senders))


@pytest.mark.parametrize("kept", [2, 4])
def test_the_gradient_equals_finite_differences(kept):
    draws, q, wanted, learned = drawn()
    router = Router(draws.normal(size=4), kept, balance=0.7, z_loss=0.3)
    _, gradient = router.loss(learned, q[0], q, wanted)
    for place in np.ndindex(learned.shape):
        step = np.zeros_like(learned)
        step[place] = 1e-6
        up, down = (router.loss(learned + way * step, q[0], q, wanted)[0] for way in (1, -1))
        assert gradient[place] == pytest.approx((up - down) / 2e-6, abs=1e-7)


def test_the_loss_equals_the_formula():
    draws, q, wanted, learned = drawn()
    router = Router(draws.normal(size=4), 2, balance=0.7, z_loss=0.3)
    value = 0.0
    asked, gates = np.zeros(4), np.zeros(4)
    for i in range(6):
        scores = router.begin + q[0, i] @ learned
        first, second = np.argsort(scores)[::-1][:2]
        gate = np.zeros(4)
        gate[[first, second]] = np.exp(scores[[first, second]]) / np.exp(scores[[first, second]]).sum()
        value -= wanted[i] @ np.log(gate @ q[:, i]) / 6
        value += 0.3 * np.log(np.exp(scores).sum()) ** 2 / 6
        asked[first] += 1 / 6
        gates += gate / 6
    assert router.loss(learned, q[0], q, wanted)[0] == pytest.approx(value + 0.7 * 4 * asked @ gates)


def test_each_sample_is_routed_to_its_expert():
    """Senders 1 and 2 each know one class; what the receiver says of a sample tells which it is."""
    samples = 40
    labels = np.arange(samples) % 2
    own = np.where(labels[:, None] == [0, 1], 0.6, 0.4)
    sure, blind = np.where(labels[:, None] == [0, 1], 0.99, 0.01), np.full((samples, 2), 0.5)
    q = np.stack(
        [own, np.where(labels[:, None] == 0, sure, blind), np.where(labels[:, None] == 1, sure, blind)]
    )
    router, wanted = Router(np.zeros(3), 3, balance=0.0, z_loss=0.0), np.eye(2)[labels]
    learned = train_router(router, own, q, wanted, steps=400, lr=10.0)
    gate = router.gate(learned, own)
    assert (gate.argmax(axis=1) == 1 + labels).all() and gate.max(axis=1).min() > 0.8
    before, after = (router.loss(a, own, q, wanted)[0] for a in (np.zeros((2, 3)), learned))
    assert after < before / 2


@pytest.mark.parametrize("seed", range(3))
def test_a_heavy_balance_loss_evens_out_the_senders(seed):
    """Steps are so small that gradient descent settles. In large ones the likeliest senders alternate."""
    _, q, wanted, _ = drawn(seed, samples=60)

    def spread(balance: float, steps: int) -> float:
        router = Router(np.array([0.3, 0.0, 0.0, -0.3]), 4, balance, 0.0)
        learned = train_router(router, q[0], q, wanted, steps=steps, lr=0.003)
        return float(np.ptp(router.gate(learned, q[0]).mean(axis=0)))

    assert 10 * spread(20.0, 300) < min(spread(0.0, 300), spread(20.0, 0))


def test_selected_senders_ignore_the_order_of_ties():
    router = Router(np.array([1.0, 1.0 + 1e-12, 1.0, 0.0]), 2, 0.0, 0.0)
    assert_allclose(router.gate(np.zeros((3, 4)), np.ones((5, 3))), [[1 / 3, 1 / 3, 1 / 3, 0]] * 5, atol=1e-9)
    assert_allclose(mixed(np.array([[0.25, 0.75]]), np.array([[[1.0, 0]], [[0, 1.0]]])), [[0.25, 0.75]])


def knowledge(seed: int = 0, clients: int = 5) -> Knowledge:
    draws = np.random.default_rng(seed)
    logits = draws.normal(0, 2, (clients, 1, 4)) + draws.normal(0, 1.5, (clients, 30, 4))
    return Knowledge(
        tuple(range(clients)),
        logits.astype(np.float32),
        np.ones(clients),
        labels=draws.integers(0, 4, 30),
        payload={"start": [np.full(4, 0.25, dtype=np.float32)] * clients},
    )


def test_distance_alone_equals_knfu():
    known = knowledge()
    found = Path(guess="distance", beta=2.0, neighbours=5, steps=0).fuse(known, {})
    expected = KnFu(beta=2.0).fuse(known, {})
    assert_allclose(found.weights, expected.weights, rtol=1e-5)
    assert_allclose(found.targets, expected.targets, atol=1e-6)


def test_labels_outweigh_experts():
    known = knowledge()
    assert known.labels is not None
    taught = {}
    for supervision in ("labels", "experts"):
        strategy = Path(supervision=supervision, guess="none", steps=200, lr=5.0, balance=0.0, z_loss=0.0)
        targets = strategy.fuse(known, {}).targets
        taught[supervision] = np.log(targets[:, np.arange(30), known.labels]).mean()
    assert taught["labels"] > taught["experts"]


def test_needs_and_traffic_follow_from_the_options():
    assert Path().capabilities.needs == frozenset() and not Path().tells_start
    assert Path(guess="shift").capabilities.needs == {"gradients"} and Path(guess="shift").tells_start
    assert Path(supervision="labels").capabilities.needs == {"transfer_labels"}
    with pytest.raises(UserError, match=r"fusion\.guess"):
        make_strategy("path", {"guess": "best"})


def test_a_single_neighbour_is_the_client_itself():
    known = knowledge()
    assert known.logits is not None
    found = Path(neighbours=1, steps=0).fuse(known, {})
    assert_array_equal(found.weights, np.eye(5))
