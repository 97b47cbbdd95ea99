"""Communication graphs from the seed or a file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from fedkd.errors import UserError
from fedkd.plan.checks.graph import check_graph, unconnected_clients
from fedkd.plan.graph import Graph
from fedkd.plan.load import parse_plan


def others(graph: Graph, round: int = 1) -> list[set[int]]:
    heard = graph.edges(round)
    assert heard.dtype == bool and heard.diagonal().all()
    return [set(np.flatnonzero(row).tolist()) - {client} for client, row in enumerate(heard)]


def test_static_graphs_have_their_known_links():
    assert others(Graph(5, "ring", 0)) == [{4, 1}, {0, 2}, {1, 3}, {2, 4}, {3, 0}]
    assert others(Graph(6, "k_regular", 0, 4))[0] == {5, 4, 1, 2}
    assert others(Graph(3, "complete", 0)) == others(Graph(3, "ring", 0)) == [{1, 2}, {0, 2}, {0, 1}]
    assert others(Graph(2, "ring", 0)) == [{1}, {0}]
    for kind in ("ring", "matching", "one_peer_exponential", "complete"):
        assert others(Graph(1, kind, 0)) == [set()]


def test_one_peer_graphs_have_one_link_per_client():
    graph = Graph(6, "one_peer_exponential", 0)
    assert [others(graph, round)[0] for round in (1, 2, 3, 4)] == [{1}, {2}, {4}, {1}]
    assert others(graph, 3) == [{4}, {5}, {0}, {1}, {2}, {3}]


def test_graphs_follow_from_seed_and_round():
    for kind in ("matching", "random_regular"):
        one, again = (Graph(12, kind, 5), Graph(12, kind, 5))
        assert_array_equal(one.edges(3), again.edges(3))
        assert any((one.edges(1) != one.edges(round)).any() for round in (2, 3))
        assert (one.edges(3) != Graph(12, kind, 6).edges(3)).any()
        assert (one.edges(3) == one.edges(3).T).all()
    assert [len(own) for own in others(Graph(12, "matching", 5))] == [1] * 12
    assert sorted(len(own) for own in others(Graph(5, "matching", 5))) == [0, 1, 1, 1, 1]
    degrees = [len(own) for own in others(Graph(40, "random_regular", 5, 4))]
    assert max(degrees) == 4 and min(degrees) >= 2 and np.mean(degrees) > 3.5


def test_shuffled_seats_are_drawn_once_and_keep_the_shape():
    numbered, shuffled = Graph(8, "ring", 1), Graph(8, "ring", 1, order="shuffled")
    assert (numbered.edges(1) != shuffled.edges(1)).any()
    assert_array_equal(shuffled.edges(1), shuffled.edges(2))
    spectra = [np.linalg.eigvalsh(graph.edges(1).astype(float)) for graph in (numbered, shuffled)]
    np.testing.assert_allclose(*spectra, atol=1e-9)


@pytest.mark.parametrize(
    "graph",
    [
        Graph(6, "k_regular", 3, 4, "shuffled"),
        Graph(6, "matching", 3),
        Graph(3, "file", 0, listed=(((1,), (), (0, 1)), ((2,), (0,), ()))),
    ],
)
def test_a_graph_reads_back_as_written(graph):
    assert Graph.from_json(graph.to_json()) == graph


def test_a_graph_file_holds_one_or_several_graphs():
    assert others(Graph.from_json('{"hears": [[1, 2], [0], [2]]}'), 9) == [{1, 2}, {0}, set()]
    graph = Graph.from_json('{"rounds": [[[1], []], [[], [0]]]}')
    assert [others(graph, round) for round in (1, 2, 3)] == [[{1}, set()], [set(), {0}], [{1}, set()]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "must be a table with 'hears' or 'rounds'"),
        ("{", "not a graph"),
        ("{}", "'hears' is missing"),
        ('{"hears": []}', "must have one list of senders per client"),
        ('{"hears": 3}', "must have one list of senders per client"),
        ('{"hears": [[1], [2]]}', "client 1 has the sender 2; clients are 0..1"),
        ('{"hears": [[1, 1], []]}', "client 0 has a sender twice"),
        ('{"hears": [[true], []]}', "client 0 has the sender True"),
        ('{"rounds": []}', "for at least one round"),
        ('{"rounds": [[[]], [[], []]]}', "same number of clients"),
        ('{"graph": "web", "clients": 3, "seed": 0, "k": 4, "order": "numbered"}', "no graph 'web'"),
        (
            '{"graph": "ring", "clients": 0, "seed": 0, "k": 4, "order": "numbered"}',
            "a graph needs at least one client",
        ),
        ('{"graph": "ring", "clients": 3, "seed": 0, "k": 4, "order": "odd"}', "order must be one of"),
        ('{"graph": "k_regular", "clients": 3, "seed": 0, "k": 4, "order": "numbered"}', "must be < 3"),
    ],
)
def test_wrong_graphs_are_refused_with_the_reason(text, said):
    with pytest.raises(UserError, match=r"^a\.json: not a graph") as caught:
        Graph.from_json(text, file="a.json")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("table", "key", "said"),
    [
        ({"graph": "k_regular", "k": 3}, "k", "must be even"),
        ({"graph": "random_regular"}, "k", "must be < 4, the number of clients, got 4"),
        (
            {"graph": "ring", "k": 2},
            "k",
            "it applies only to 'k_regular' or 'random_regular', and topology.graph is",
        ),
        ({"graph": "matching", "order": "shuffled"}, "order", "it applies only to 'ring'"),
        ({"graph": "file"}, "path", "missing; graph 'file' needs a JSON file"),
        ({"graph": "ring", "path": "a.json"}, "path", "it applies only to 'file'"),
        ({"graph": "file", "path": "nowhere.json"}, "path", "no file 'nowhere.json'"),
        ({"mixing": "push_sum"}, "mixing", "graph is 'star'"),
        ({"relay": True}, "relay", "graph is 'star'"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(table, key, said, digits_scenario):
    with pytest.raises(UserError) as caught:
        parse_plan(digits_scenario | {"topology": table})
    assert caught.value.key == f"topology.{key}" and said in caught.value.message


def test_a_file_beside_the_scenario_is_read(digits_scenario, tmp_path):
    (tmp_path / "who.json").write_text(json.dumps({"hears": [[1], [0], [3], []]}))
    topology = {"graph": "file", "path": "who.json"}
    plan = parse_plan(digits_scenario | {"topology": topology}, folder=tmp_path)
    assert others(plan.graph) == [{1}, {0}, {3}, set()]
    assert unconnected_clients(plan, plan.graph) == [("", [(0, 1), (2, 3)])]
    (tmp_path / "who.json").write_text(json.dumps({"hears": [[1], [0]]}))
    with pytest.raises(UserError, match=r"is for 2 clients, but data\.clients is 4"):
        parse_plan(digits_scenario | {"topology": topology}, folder=tmp_path)


@pytest.mark.parametrize(
    ("fusion", "topology", "key", "said"),
    [
        ({"strategy": "gossip"}, {}, "fusion.strategy", "topology.graph is 'star'"),
        ({"strategy": "feddf"}, {"graph": "ring"}, "fusion.strategy", "trains a model on the server"),
        ({"strategy": "kta"}, {"graph": "ring"}, "fusion.strategy", "labels of the transfer set"),
        (
            {"strategy": "max_confidence", "confidence": "true_class"},
            {"graph": "ring"},
            "fusion.strategy",
            "labels",
        ),
        ({"strategy": "fedper"}, {"graph": "ring"}, "fusion.strategy", "use 'gossip'"),
        ({"strategy": "scarlet"}, {"graph": "ring"}, "fusion.strategy", "'scarlet' needs a server"),
        ({"strategy": "flwr:FedAvg"}, {"graph": "ring"}, "fusion.strategy", "use 'gossip'"),
        (
            {"strategy": "knfu", "knowledge_cache": {}},
            {"graph": "ring"},
            "fusion.knowledge_cache",
            "needs a server",
        ),
        ({"strategy": "knfu"}, {"graph": "ring", "relay": True}, "topology.relay", "fusion.stale_decay"),
        ({"strategy": "gossip"}, {"graph": "ring", "relay": True}, "topology.relay", "with 'knfu'"),
        (
            {"strategy": "gossip"},
            {"graph": "one_peer_exponential", "mixing": "metropolis"},
            "topology.mixing",
            "must be 'push_sum'",
        ),
    ],
)
def test_server_settings_and_graphs_exclude_each_other(fusion, topology, key, said, digits_scenario):
    plan = parse_plan(digits_scenario | {"fusion": fusion, "topology": topology})
    with pytest.raises(UserError) as caught:
        check_graph(plan)
    assert caught.value.key == key and said in caught.value.message


def test_a_clock_filters_and_asynchronous_rounds_need_a_server(digits_scenario):
    ring = digits_scenario | {"topology": {"graph": "ring"}}
    with pytest.raises(UserError, match=r"topology\.graph: not allowed in an asynchronous run"):
        parse_plan(ring | {"asynchronous": {"buffer": 2}})
    with pytest.raises(UserError, match="clock: simulates messages to a server"):
        check_graph(parse_plan(ring | {"clock": {}}))
    with pytest.raises(UserError, match=r"fusion\.filters: needs a server"):
        check_graph(parse_plan(ring | {"fusion": {"strategy": "knfu", "filters": [{"by": "agreement"}]}}))


def test_isolated_or_disconnected_architectures_are_named(digits_scenario):
    mixed = [{"model": "mlp", "share": 2}, {"model": "lenet"}, {"model": "cnn"}]
    tables = digits_scenario | {"clients": mixed, "topology": {"graph": "ring"}}
    gossip = parse_plan(tables | {"fusion": {"strategy": "gossip"}})
    names = [group.model for group in gossip.groups]
    assert names == ["mlp", "lenet", "cnn", "mlp"]
    assert unconnected_clients(gossip, gossip.graph) == [("lenet", [(1,)]), ("cnn", [(2,)])]
    apart = Graph.from_json('{"hears": [[1], [0], [3], [2]]}')
    assert unconnected_clients(gossip, apart)[0] == ("mlp", [(0,), (3,)])
    predictions = parse_plan(tables)
    assert unconnected_clients(predictions, predictions.graph) == []
    pairs = parse_plan(tables | {"topology": {"graph": "matching"}, "rounds": 30})
    assert unconnected_clients(pairs, pairs.graph) == []  # drawn anew, they all meet some day
