"""Which clients take part in a round."""

from __future__ import annotations

from flwr.app import Message, RecordDict

from fedkd.engine.inline import InlineGrid
from fedkd.federation.node_subset import NodeSubset, nodes_in_client_order, sample_clients


def test_everyone_takes_part_unless_fewer_are_asked_for():
    assert sample_clients(5, None, 0, 1) == [0, 1, 2, 3, 4]
    assert sample_clients(5, 5, 0, 1) == [0, 1, 2, 3, 4]
    assert sample_clients(5, 9, 0, 1) == [0, 1, 2, 3, 4]


def test_a_draw_is_ascending_without_repeats_and_repeatable():
    for round in range(1, 50):
        drawn = sample_clients(20, 7, 3, round)
        assert len(drawn) == 7
        assert drawn == sorted(set(drawn))
        assert set(drawn) <= set(range(20))
        assert drawn == sample_clients(20, 7, 3, round)
        assert all(type(client) is int for client in drawn)


def test_rounds_and_seeds_draw_differently():
    assert len({tuple(sample_clients(20, 7, 3, round)) for round in range(1, 21)}) == 20
    assert len({tuple(sample_clients(20, 7, seed, 1)) for seed in range(20)}) == 20


def test_every_client_is_drawn_equally_often():
    counts = [0] * 10
    for round in range(1, 2001):
        for client in sample_clients(10, 3, 0, round):
            counts[client] += 1
    # 600 expected, standard deviation √(2000 · 0.3 · 0.7) ≈ 20.5
    assert all(abs(count - 600) < 5 * 20.5 for count in counts)


def test_nodes_come_in_client_order_whatever_their_ids():
    assert nodes_in_client_order({0: 77, 1: 5, 2: 31}, [2, 0]) == [77, 31]


def test_a_cohort_shows_its_nodes_only_and_talks_through_the_whole_grid():
    def app(message, context):
        return Message(RecordDict(), reply_to=message)

    whole = InlineGrid(app, lambda client: None, 5)
    nodes = list(whole.get_node_ids())
    cohort = NodeSubset(whole, [nodes[3], nodes[1]])
    assert list(cohort.get_node_ids()) == [nodes[3], nodes[1]]
    message = cohort.create_message(RecordDict(), "train", nodes[3], "1")
    (reply,) = cohort.send_and_receive([message])
    assert reply.metadata.src_node_id == nodes[3]
    (key,) = cohort.push_messages([cohort.create_message(RecordDict(), "train", nodes[1], "1")])
    (pulled,) = cohort.pull_messages([key])
    assert pulled.metadata.src_node_id == nodes[1]
    cohort.set_run(whole.run)
    assert cohort.run is whole.run
