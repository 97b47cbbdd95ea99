"""Guidance waits for the next message: the newest of each client, once, and on disk once."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_array_equal

from fedkd.server.mailbox import Mailbox, Parcel


def parcel(round: int, value: float) -> Parcel:
    return Parcel(round, {"targets": np.full((2, 3), value)})


def test_the_newest_parcel_wins_and_is_taken_once():
    mailbox, newest = Mailbox(), parcel(2, 2.0)
    mailbox.put(4, parcel(1, 1.0))
    mailbox.put(4, newest)
    assert mailbox.take(4) is newest
    assert mailbox.take(4) is None
    assert mailbox.take(5) is None


def test_what_is_for_all_replaces_what_waits_for_anybody():
    mailbox, shared, own = Mailbox(), parcel(2, 2.0), parcel(3, 3.0)
    mailbox.put(0, parcel(1, 1.0))
    mailbox.put_for_all((0, 1, 2), shared)
    mailbox.put(1, own)
    assert [mailbox.take(client) for client in (0, 1, 2)] == [shared, own, shared]


def test_who_is_not_known_receives_what_is_for_all_and_nobodys_own():
    mailbox, shared = Mailbox(), parcel(2, 2.0)
    mailbox.put(0, parcel(1, 1.0))
    assert mailbox.take(None) is None
    mailbox.put_for_all((0,), shared)
    assert mailbox.take(None) is shared and mailbox.take(None) is shared


def test_a_parcel_that_several_wait_for_is_saved_once():
    mailbox, shared, own = Mailbox(), parcel(2, 2.0), parcel(3, 3.0)
    for client in (5, 0, 3):
        mailbox.put(client, shared)
    mailbox.put(1, own)
    state = mailbox.state()
    assert {name: values.tolist() for name, values in state.items() if name.endswith("/clients")} == {
        "0/clients": [0, 3, 5],
        "1/clients": [1],
    }
    assert {name: int(values) for name, values in state.items() if name.endswith("/round")} == {
        "0/round": 2,
        "1/round": 3,
    }
    assert [name for name in state if "guidance" in name] == ["0/guidance/targets", "1/guidance/targets"]


def test_a_restored_mailbox_hands_out_the_same():
    mailbox, shared, own = Mailbox(), parcel(2, 2.0), parcel(3, 3.0)
    mailbox.put_for_all((0, 1, 2, 3), shared)
    mailbox.put(1, own)
    mailbox.take(2)
    restored = Mailbox()
    restored.put(2, parcel(1, 1.0))  # forgotten: it is not in the state
    restored.restore(mailbox.state())
    assert list(restored.state()) == list(mailbox.state())
    taken = {client: restored.take(client) for client in range(4)}
    assert taken[2] is None
    assert taken[0] is taken[3], "still one for both"
    for client, wanted in ((0, shared), (1, own), (3, shared)):
        assert taken[client].round == wanted.round
        assert_array_equal(taken[client].arrays["targets"], wanted.arrays["targets"])
