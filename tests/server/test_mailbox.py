"""Guidance waits for the next message of a client."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_array_equal

from fedkd.server.mailbox import GuidanceParcel, Mailbox


def parcel(round: int, value: float) -> GuidanceParcel:
    return GuidanceParcel(round, {"targets": np.full((2, 3), value)})


def test_the_newest_parcel_wins_and_is_taken_once():
    mailbox, newest = Mailbox(), parcel(2, 2.0)
    mailbox.put(4, parcel(1, 1.0))
    mailbox.put(4, newest)
    assert mailbox.take(4) is newest
    assert mailbox.take(4) is None
    assert mailbox.take(5) is None


def test_missed_broadcasts_wait_separately_and_the_newest_wins():
    mailbox, shared, newest = Mailbox(), parcel(2, 2.0), parcel(3, 3.0)
    mailbox.put(0, parcel(1, 1.0))
    mailbox.put_missed((0, 1), shared)
    mailbox.put_missed((1,), newest)
    assert mailbox.take_missed(1, leave=True) is newest, "looked at, not taken"
    assert [mailbox.take_missed(client) for client in (0, 1, 2)] == [shared, newest, None]
    assert mailbox.take_missed(1) is None
    assert mailbox.take(0).round == 1


def test_unknown_clients_receive_broadcasts_only():
    mailbox, shared = Mailbox(), parcel(2, 2.0)
    mailbox.put(0, parcel(1, 1.0))
    mailbox.put_missed((1,), parcel(1, 1.0))
    assert mailbox.take(None) is None and mailbox.take_missed(None) is None
    mailbox.put_for_all((1,), shared)
    assert mailbox.take_missed(None) is shared and mailbox.take_missed(None) is shared
    assert mailbox.take_missed(1) is shared, "in place of what it missed before"


def test_broadcasts_wait_for_clients_that_become_known():
    mailbox, shared = Mailbox(), parcel(2, 2.0)
    mailbox.meet(4)
    assert mailbox.take_missed(4) is None, "nothing has been fused yet"
    mailbox.put_for_all((0,), shared)
    mailbox.meet(5)
    assert mailbox.take_missed(5) is shared and mailbox.take_missed(5) is None


def test_a_shared_parcel_is_saved_once():
    mailbox, shared, own = Mailbox(), parcel(2, 2.0), parcel(3, 3.0)
    for client in (5, 0, 3):
        mailbox.put(client, shared)
    mailbox.put(1, own)
    mailbox.put_missed((4, 2), shared)
    state = mailbox.state()
    assert {name: values.tolist() for name, values in state.items() if name.endswith("/clients")} == {
        "own/0/clients": [0, 3, 5],
        "own/1/clients": [1],
        "missed/0/clients": [2, 4],
    }
    assert {name: int(values) for name, values in state.items() if name.endswith("/round")} == {
        "own/0/round": 2,
        "own/1/round": 3,
        "missed/0/round": 2,
    }
    assert len([name for name in state if name.endswith("guidance/targets")]) == 3


def test_a_restored_mailbox_delivers_the_same_mail():
    mailbox, shared, own = Mailbox(), parcel(2, 2.0), parcel(3, 3.0)
    mailbox.put_missed((0, 2, 3), shared)
    mailbox.put(1, own)
    mailbox.take_missed(2)
    restored = Mailbox()
    restored.put(2, parcel(1, 1.0))  # forgotten: it is not in the state
    restored.restore(mailbox.state())
    assert list(restored.state()) == list(mailbox.state())
    assert restored.take(2) is None and restored.take_missed(2) is None
    first, again, mine = restored.take_missed(0), restored.take_missed(3), restored.take(1)
    assert first is again, "still one for both"
    for got, wanted in ((first, shared), (mine, own)):
        assert got.round == wanted.round
        assert_array_equal(got.arrays["targets"], wanted.arrays["targets"])
