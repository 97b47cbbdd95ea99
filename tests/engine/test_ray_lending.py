"""Idle processors are lent to clients in evaluation."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedkd.engine.ray.batch import lend_idle
from fedkd.federation.compat import assume_identity, node_id_of
from fedkd.federation.messages import records as msg

OWNER = {0: 0, 1: 1, 2: 2, 3: 3, 4: 0, 5: 4}
NODES = {0: "a", 1: "a", 2: "a", 3: "a", 4: "b"}
"""Four actors on one node, one on another."""


@pytest.fixture(autouse=True)
def identified():
    assume_identity()


def lanes(clients, kind=msg.EVALUATE, **content):
    messages = [
        Message(RecordDict({msg.CONFIG: ConfigRecord(), **content}), node_id_of(client), kind)
        for client in clients
    ]
    lend_idle(messages, OWNER, NODES)
    return [message.content.config_records[msg.CONFIG].get(msg.LANES, 1) for message in messages]


@pytest.mark.parametrize(
    ("clients", "expected"),
    [
        ([0], [4]),
        ([0, 4], [4, 4]),  # both of one actor, one after the other
        ([0, 1], [2, 2]),
        ([0, 1, 2], [1, 1, 1]),
        ([1, 5], [4, 1]),  # what is idle on another node is of no use
        ([0, 1, 2, 3, 4, 5], [1] * 6),
    ],
)
def test_idle_processors_of_a_node_are_lent(clients, expected):
    assert lanes(clients) == expected


def test_training_clients_borrow_no_processors():
    assert lanes([0], msg.TRAIN) == [1]
    message = Message(RecordDict(), node_id_of(0), msg.EVALUATE)
    lend_idle([message], OWNER, NODES)
    assert msg.CONFIG not in message.content
