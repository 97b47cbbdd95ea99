"""`bandit`: clients draw teachers by their rewards."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from rounds import draw_logits, knowledge_of
from small_views import SmallClient

from fedkd.fusion.experimental.bandit import Bandit, advantage
from fedkd.fusion.math.probabilities import softmax

CLIENTS, NOISE = 5, 3


def played(strategy: Bandit, reward_of, rounds: int, seed: int = 0):
    """Return the last guidance of some rounds, `reward_of` telling what a teacher's guidance gains."""
    logits, memory, extra = draw_logits(CLIENTS, 4, 3), {}, {"reward": [np.empty(0, np.float32)] * CLIENTS}
    for round in range(1, rounds + 1):
        guidance = strategy.fuse(knowledge_of(logits, payload=extra, seed=seed, round=round), memory)
        memory = guidance.memory
        rewards = [reward_of(n, int(teacher), round) for n, teacher in enumerate(memory["teacher"])]
        extra = {"reward": [np.array([reward], np.float32) for reward in rewards]}
    return guidance


def test_a_round_equals_a_hand_computation() -> None:
    logits = draw_logits(3, 4, 3)
    strategy, nothing = Bandit(step=2.0, floor=0.3, own=0.75), np.empty(0, np.float32)
    first = strategy.fuse(knowledge_of(logits, payload={"reward": [nothing] * 3}, round=1), {})
    assert_allclose(first.memory["policy"], 1 / 3)
    q, teachers = softmax(logits), first.memory["teacher"]
    for n, a in enumerate(teachers):
        assert_allclose(first.targets[n], 0.75 * q[n] + 0.25 * q[a], atol=1e-6)
        assert first.weights[n, a] == pytest.approx(0.25 + 0.75 * (n == a))

    sent = [np.array([0.1], np.float32), nothing, np.array([-0.4], np.float32)]
    second = strategy.fuse(knowledge_of(logits, payload={"reward": sent}, round=2), first.memory)
    theta = np.zeros((3, 3))
    for n, sign in ((0, 1.0), (2, -1.0)):  # of a first reward only its sign counts
        theta[n] = 2.0 * sign * ((np.arange(3) == teachers[n]) - 1 / 3)
    assert_allclose(second.memory["theta"], theta, atol=1e-12)
    powers = np.exp(theta)
    assert_allclose(
        second.memory["policy"], 0.7 * powers / powers.sum(axis=1, keepdims=True) + 0.1, atol=1e-12
    )


def test_absent_clients_keep_their_teacher_until_their_next_upload() -> None:
    """Nothing is sent to it, so what its reward was for is who taught it last."""
    logits, nothing = draw_logits(3, 4, 3), np.empty(0, np.float32)
    first = Bandit().fuse(knowledge_of(logits, payload={"reward": [nothing] * 3}, round=1), {})
    said = {"reward": [np.array([gain], np.float32) for gain in (0.2, -0.2, 0.2)]}
    new = np.array([True, False, True])
    later = {"age": np.array([1, 2, 1]), "new": new, "payload": said, "round": 2}
    second = Bandit().fuse(knowledge_of(logits, **later), first.memory)
    assert second.memory["teacher"][1] == first.memory["teacher"][1]
    assert_array_equal(second.memory["theta"].any(axis=1), new)
    assert_array_equal(second.weights[1], [0, 1, 0])


def test_reward_moments_are_weighted_means() -> None:
    rewards, told = [0.2, -0.1, 0.4, 0.0], (0.0, 0.0, 0.0)
    for number, reward in enumerate(rewards):
        gained, *told = advantage(reward, *told)
        before, apart = [], []
        for k in range(number + 1):
            weight = [0.9 ** (k - 1 - j) for j in range(k)]
            b = sum(w * r for w, r in zip(weight, rewards, strict=False)) / sum(weight) if k else 0.0
            apart.append((rewards[k] - b) ** 2)
            before.append(b)
        weight = [0.9 ** (number - j) for j in range(number + 1)]
        deviation = math.sqrt(sum(w * v for w, v in zip(weight, apart, strict=True)) / sum(weight))
        assert gained == pytest.approx((reward - before[-1]) / deviation)
    assert advantage(0.0, 0.0, 0.0, 0.0) == (0.0, 0.0, 0.0, 1.0)


def test_equal_rewards_leave_preferences_unchanged_on_average() -> None:
    """Σ_a π_a (1_a − π) is 0; with the floor as well, since π is what is drawn from."""
    guidance = played(Bandit(), lambda n, a, round: 0.01 * (a == 0), rounds=9)
    policy = guidance.memory["policy"]
    assert np.abs(guidance.memory["theta"]).max() > 0.1
    moved = np.einsum("na,nab->nb", policy, np.eye(CLIENTS) - policy[:, None, :])
    assert_allclose(moved, 0.0, atol=1e-12)
    level = played(Bandit(), lambda n, a, round: 0.0, rounds=9)
    assert_array_equal(level.memory["theta"], 0.0)


def test_a_noise_teacher_is_dropped_within_thirty_rounds() -> None:
    chance = np.random.default_rng(0).normal(0, 0.02, (32, CLIENTS))
    guidance = played(
        Bandit(), lambda n, a, round: chance[round, n] + (-0.1 if a == NOISE else 0.02), rounds=31
    )
    drawn = guidance.memory["policy"][:, NOISE]
    assert (np.delete(drawn, NOISE) < 1 / CLIENTS).all() and drawn.mean() < 0.5 / CLIENTS
    assert (drawn >= 0.1 / CLIENTS).all()  # and is still tried


def test_absent_clients_keep_their_state_and_pending_reward() -> None:
    strategy, logits = Bandit(), draw_logits(4, 4, 3)
    nothing, good = np.empty(0, np.float32), np.array([0.5], np.float32)
    memory = strategy.fuse(knowledge_of(logits[:2], (1, 4), payload={"reward": [nothing] * 2}), {}).memory
    owed = memory["teacher"][1]
    memory = strategy.fuse(knowledge_of(logits[:2], (0, 7), payload={"reward": [nothing] * 2}), memory).memory
    assert_array_equal(memory["clients"], [0, 1, 4, 7])
    assert memory["teacher"][2] == owed
    memory = strategy.fuse(knowledge_of(logits[:1], (4,), payload={"reward": [good]}), memory).memory
    assert_allclose(memory["theta"][2, memory["clients"] == owed], 0.25)
    assert memory["teacher"][2] == 4  # only itself was there


def test_a_client_measures_the_gain_of_guidance() -> None:
    labels = np.array([0, 1, 0, 1])
    client = SmallClient(
        logits=np.zeros((3, 2), np.float32),
        private_logits=np.eye(2, dtype=np.float32)[labels[::-1]],
        means={"features": np.zeros((2, 1))},
    )
    strategy = Bandit()
    assert strategy.upload(client)["reward"].shape == (0,)
    client.learn(strategy, {"targets": softmax(np.zeros((3, 2), np.float32))})
    assert len(client.distilled) == 1
    client._private_logits = np.eye(2, dtype=np.float32)[[0, 1, 0, 0]]
    strategy.before_training(client)
    assert_allclose(strategy.upload(client)["reward"], [0.75])
    strategy.before_training(client)
    assert strategy.upload(client)["reward"].shape == (0,)
