"""Whole runs on communication graphs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from stopping import StopInRound

import fedkd
from fedkd.cli.main import main
from fedkd.errors import Interrupted, UserError
from fedkd.plan.graph import Graph
from fedkd.plan.load import parse_scenario
from fedkd.scenario.schema import Scenario
from fedkd.storage.digests import list_table_rounds
from fedkd.tracking import read_links
from fedkd.tracking.neighbours import read_neighbours

pytestmark = pytest.mark.usefixtures("no_report")

ABOUT_LINKS = {"bytes_sent", "bytes_received", "bytes_per_link", "links"}
UPLOAD = 60 * 10 * 4


def scenario(tables, graph: str, **changes) -> Scenario:
    return parse_scenario(tables | {"topology": {"graph": graph}} | changes)


def test_a_complete_graph_equals_a_server(digits_scenario, tmp_path):
    tables = digits_scenario | {"clients_per_round": 3}
    star = fedkd.run(scenario(tables, "star"), out=tmp_path / "star")
    complete = fedkd.run(scenario(tables, "complete"), out=tmp_path / "complete")
    rows = [row for row in complete.metrics() if row["metric"] not in ABOUT_LINKS]
    assert rows == star.metrics() and len(rows) > 20
    assert not (tmp_path / "star" / "topology.json").exists()
    totals = [run.summary["final"] for run in (star, complete)]
    # Each of three clients sends the server once, and the two others of a round.
    assert [total["bytes_up"] for total in totals] == [2 * 3 * UPLOAD, 2 * 3 * 2 * UPLOAD]
    assert [total["bytes_down"] for total in totals] == [2 * 3 * UPLOAD, 2 * 3 * 2 * UPLOAD]


def test_neighbours_are_recorded_and_counted(digits_scenario, tmp_path):
    run = fedkd.run(scenario(digits_scenario, "matching", seed=3), out=tmp_path / "run")
    graph = Graph.from_json((run.folder / "topology.json").read_text())
    assert graph == Graph(4, "matching", 3) and list_table_rounds(run.folder / "fusion", "links") == [1, 2]
    for round in (1, 2):
        links = read_links(run.folder, round)
        edges = graph.edges(round)
        assert links.clients == (0, 1, 2, 3)
        np.testing.assert_array_equal(links.heard | np.eye(4, dtype=bool), edges)
        np.testing.assert_array_equal(links.sizes, UPLOAD * links.heard)
        assert (read_neighbours(run.folder, round).weights[~edges] == 0).all()
    told = {(row["round"], row["client"], row["metric"]): row["value"] for row in run.metrics()}
    for client in (0, 1, 2, 3, None):
        assert told[2, client, "bytes_sent"] == told[2, client, "bytes_received"] == UPLOAD
    assert (told[1, None, "links"], told[1, None, "bytes_per_link"]) == (4, UPLOAD)


@pytest.mark.parametrize(
    "fusion",
    [{"strategy": "knfu", "stale_decay": 0.5, "distribution_momentum": 0.5}, {"strategy": "gossip"}],
    ids=["relayed", "gossip"],
)
def test_a_run_on_a_graph_resumes_exactly(fusion, digits_scenario, tmp_path):
    relay = "stale_decay" in fusion
    topology = {"graph": "one_peer_exponential", "order": "shuffled", "relay": relay}
    changes = {"rounds": 4, "clients_per_round": 3, "fusion": fusion, "topology": topology}
    tables = digits_scenario | changes
    unbroken = fedkd.run(parse_scenario(tables), out=tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        fedkd.run(parse_scenario(tables), out=tmp_path / "stopped", observers=[StopInRound(2)])
    stopped = fedkd.resume(tmp_path / "stopped")
    for name in ("metrics.jsonl", "topology.json", "fusion/links-00004.npz"):
        assert (stopped.folder / name).read_bytes() == (unbroken.folder / name).read_bytes()
    assert stopped.summary["final"]["bytes_up"] == unbroken.summary["final"]["bytes_up"]


def test_clients_of_a_stream_receive_from_clients_at_their_task(digits_scenario, tmp_path):
    stream = {
        "learner": "naive",
        "tasks": {"kind": "split", "count": 2, "classes_per_task": 3, "order": "shuffled"},
    }
    data = digits_scenario["data"] | {"partition": {"alpha": 1.0, "samples_per_client": 40}}
    tables = {name: table for name, table in digits_scenario.items() if name != "rounds"} | {"data": data}
    run = fedkd.run(scenario(tables, "complete", continual=stream), out=tmp_path / "run")
    schedule = json.loads((run.folder / "schedule.json").read_text())
    first = {c: course["spans"][0][0] for course in schedule["courses"] for c in course["clients"]}
    together = np.array([[first[n] == first[m] and n != m for m in range(4)] for n in range(4)])
    assert 0 < together.sum() < 12
    np.testing.assert_array_equal(read_links(run.folder, 1).heard, together)


def test_check_shows_links_and_names_isolated_clients(tmp_path, capsys):
    (tmp_path / "who.json").write_text(json.dumps({"hears": [[1], [0], [3], []]}))
    (tmp_path / "a.toml").write_text(
        'name = "a"\nrounds = 2\ndata = { clients = 4, transfer = { size = 20 } }\n'
        'clients = [{ model = "mlp" }]\ntopology = { graph = "file", path = "who.json" }\n'
    )
    assert main(["check", str(tmp_path / "a.toml")]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    at = next(place for place, line in enumerate(lines) if line.startswith("graph "))
    assert "0 to 1 sender per client" in lines[at]
    assert lines[at + 1 : at + 5] == ["client 0  ox··", "client 1  xo··", "client 2  ··ox", "client 3  ···o"]
    assert lines[at + 5] == "clients form parts without a path between them: {0, 1} {2, 3}"
    assert "about 2.4 kB over 3 links in round 1 (clients send logits)" in lines[-3]
    words = ["check", str(tmp_path / "a.toml"), "--set", "topology.graph=web"]
    assert main(words) == 2
    assert "topology.graph" in capsys.readouterr().err


def test_a_run_cannot_resume_on_another_graph(digits_scenario, tmp_path):
    (tmp_path / "who.json").write_text(json.dumps({"hears": [[1], [0], [3], [2]]}))
    tables = digits_scenario | {"rounds": 1, "topology": {"graph": "file", "path": "who.json"}}
    begun = fedkd.run(parse_scenario(tables, folder=tmp_path), out=tmp_path / "run")
    (tmp_path / "who.json").write_text(json.dumps({"hears": [[2], [3], [0], [1]]}))
    with pytest.raises(UserError, match=r"describes another graph than topology\.json"):
        fedkd.resume(begun.folder, rounds=2)
    (tmp_path / "who.json").write_text((begun.folder / "topology.json").read_text())
    assert fedkd.resume(begun.folder, rounds=2).summary["rounds"] == 2


def test_server_strategies_do_not_run_on_a_graph(digits_scenario, tmp_path):
    with pytest.raises(UserError, match="trains a model on the server"):
        fedkd.run(scenario(digits_scenario, "ring", fusion={"strategy": "feddf"}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
