"""Message: questions, answers and traffic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from rounds import assert_distributions, draw_logits, guidance_for, num_bytes, softmax_by_loops
from small_views import SmallClient

from fedkd.errors import TrainingDiverged
from fedkd.fusion.experimental.message import Message
from fedkd.fusion.predictions import Answers, answers_of, predictions
from fedkd.fusion.strategy import Knowledge


def federation(logits: np.ndarray) -> list[SmallClient]:
    return [SmallClient(logits=own) for own in logits]


def round_of(strategy: Message, clients: dict[int, SmallClient], memory):
    uploads = [strategy.upload(client) for client in clients.values()]
    extra = {name: [upload[name] for upload in uploads] for name in uploads[0]}
    knowledge = Knowledge(tuple(clients), None, np.full(len(clients), 10), payload=extra)
    guidance = strategy.fuse(knowledge, memory)
    for row, client in enumerate(clients.values()):
        client.learn(strategy, guidance_for(row, guidance))
    return guidance, uploads


def in_steps(q: list[float]) -> list[float]:
    """Return what an answer of two classes says of a prediction."""
    first, second = sorted(range(len(q)), key=lambda c: (-q[c], c))[:2]
    said = {c: math.floor(255 * q[c] + 0.5) / 255 for c in (first, second)}
    rest = (1 - sum(said.values())) / (len(q) - 2)
    return [said.get(c, rest) for c in range(len(q))]


def test_the_best_client_of_both_classes_answers_earlier_questions() -> None:
    z = draw_logits(4, 10, 5, seed=3)
    q, strategy, clients = softmax_by_loops(z), Message(questions=0.3), dict(enumerate(federation(z)))
    first, uploads = round_of(strategy, clients, {})
    assert all(not client.distilled for client in clients.values()) and first.weights is None
    second, uploads = round_of(strategy, clients, first.memory)

    asked = {}
    for n in range(4):
        margins = []
        for i in range(10):
            top = sorted(q[n][i], reverse=True)
            margins.append((top[0] - top[1], i))
        asked[n] = sorted(i for _, i in sorted(margins)[:3])
    anything = sorted(set().union(*asked.values()))
    said = {m: {i: in_steps(q[m][i]) for i in anything} for m in range(4)}
    p = {m: [sum(said[m][i][c] for i in anything) / len(anything) for c in range(5)] for m in range(4)}
    for n in range(4):
        (targets, samples), taught = clients[n].distilled[0], [0.0] * 4
        assert_array_equal(samples, asked[n])
        for row, i in enumerate(asked[n]):
            pair = sorted(range(5), key=lambda c: (-q[n][i][c], c))[:2]
            teacher = max(
                (m for m in range(4) if m != n), key=lambda m: max(p[m][c] * said[m][i][c] for c in pair)
            )
            assert_allclose(targets[row], said[teacher][i], atol=1e-6)
            taught[teacher] += 1 / 3
        assert_allclose(second.weights[n], taught)
    # Up: a bit a transfer sample, two bytes a question, four a sample asked about; and what it is about.
    assert num_bytes(uploads[0]) == 2 + 2 * 3 + 4 * len(anything) + 8
    assert num_bytes(guidance_for(0, second)) == 2 * 2 + 4 * 3


def test_absent_clients_receive_answers_and_new_ones_none() -> None:
    clients = federation(draw_logits(3, 8, 4, seed=1))
    strategy = Message(questions=0.25)
    first, _ = round_of(strategy, {0: clients[0], 1: clients[1]}, {})
    second, _ = round_of(strategy, {1: clients[1]}, first.memory)
    assert second.absent.keys() == {0} and second.personal == [{}]  # client 1 is alone with its question
    assert second.weights is not None and second.weights.tolist() == [[1.0]]
    assert second.absent[0]["classes"].shape == (2, 2)


def test_clients_without_the_questions_do_not_teach() -> None:
    clients = dict(enumerate(federation(draw_logits(3, 8, 4, seed=1))))
    strategy = Message(questions=0.25)
    first, _ = round_of(strategy, clients, {})
    clients[2].memory["questions"] = ~clients[2].memory["questions"]
    second, _ = round_of(strategy, clients, first.memory)
    assert second.weights.tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [*second.weights[2, :2], 0.0]]
    clients[1].memory["questions"] = clients[2].memory["questions"] = np.zeros(1, dtype=np.uint8)
    third, _ = round_of(strategy, clients, second.memory)
    assert third.weights.tolist()[1:] == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]] and third.personal[0] == {}


def test_without_questions_there_are_no_targets() -> None:
    strategy, clients = Message(questions=0.0), dict(enumerate(federation(draw_logits(3, 6, 4))))
    guidance, _ = round_of(strategy, clients, {})
    guidance, uploads = round_of(strategy, clients, guidance.memory)
    assert all(not client.distilled for client in clients.values())
    assert uploads[0]["classes"].size == 0 and guidance.absent == {}


def test_confident_answers_carry_more_information() -> None:
    q = np.array([[0.9, 0.05, 0.03, 0.02], [0.4, 0.3, 0.2, 0.1]], dtype=np.float32)
    found = predictions(answers_of(q), 4)
    assert_allclose(found, [in_steps(row) for row in q.tolist()], atol=1e-6)
    assert_allclose(predictions(answers_of(np.ones((3, 1))), 1), np.ones((3, 1)))
    two = np.array([[0.25, 0.75]])
    assert_allclose(predictions(answers_of(two), 2), two, atol=1 / 255)


@pytest.mark.parametrize("classes", [1, 2, 5, 300])
def test_every_answer_is_a_distribution(classes) -> None:
    draws = np.random.default_rng(0)
    for shares in (np.full((20, 2), 255), np.zeros((20, 2)), draws.integers(0, 256, (20, 2))):
        named = draws.integers(0, classes, (20, 2))
        assert_distributions(predictions(Answers(named, shares.astype(np.uint8)), classes).astype(np.float32))


def test_uploads_grow_with_classes_and_hold_bits_only() -> None:
    client = SmallClient(logits=draw_logits(1, 4, 300)[0])
    client.memory["questions"] = np.array([0b11110000], dtype=np.uint8)
    assert Message().upload(client)["classes"].dtype == np.uint16
    client.all_logits = np.full((4, 300), np.nan, dtype=np.float32)
    with pytest.raises(TrainingDiverged):
        Message().upload(client)
