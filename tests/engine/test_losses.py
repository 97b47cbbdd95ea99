"""The restart policy limits rollbacks after lost actors."""

from __future__ import annotations

from fedkd.engine.startup import RestartPolicy
from fedkd.errors import ActorsLost


def node(round: int | None = None) -> ActorsLost:
    return ActorsLost("node 10.0.0.7 was lost", round=round)


def client(index: int, round: int) -> ActorsLost:
    return ActorsLost("its Ray actor died", client=index, round=round)


def test_rollbacks_are_limited_per_checkpoint():
    policy = RestartPolicy(2)
    assert [policy.record(node(), 3) for _ in range(2)] == [None, None]
    assert policy.count == "2 of 2"
    assert policy.record(node(), 4) is None
    assert policy.record(node(), 4) is None
    end = policy.record(node(), 4)
    assert str(end) == (
        "node 10.0.0.7 was lost; the run has gone back to the checkpoint of round 4 2 times (engine.restarts)"
    )


def test_a_client_that_kills_its_process_twice_is_named():
    policy = RestartPolicy(9)
    assert policy.record(client(2, 5), 4) is None
    assert policy.record(client(3, 5), 4) is None, "another one"
    assert policy.record(client(3, 6), 5) is None, "further on"
    assert policy.record(node(), 5) is None
    assert policy.record(client(3, 6), 5) is None, "a node was lost in between"
    end = policy.record(client(3, 6), 5)
    assert (end.client, end.round) == (3, 6)
    assert str(end).endswith("died; as it did before the run went back to the checkpoint of round 5")


def test_zero_rollbacks_end_the_run_at_the_first_loss():
    loss = client(1, 1)
    assert RestartPolicy(0).record(loss, 0) is loss


def test_with_tolerated_failures_only_lost_nodes_cause_a_rollback():
    policy = RestartPolicy(3, tolerant=True)
    assert policy.record(node(), 0) is None
    loss = client(1, 2)
    assert policy.record(loss, 0) is loss
