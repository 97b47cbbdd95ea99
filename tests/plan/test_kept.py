"""The number of uploads in memory."""

from __future__ import annotations

import pytest

import fedkd
from fedkd.clients.costs import model_memory as memory
from fedkd.data.load import load_data
from fedkd.errors import UserError
from fedkd.federation.manifest import Manifest
from fedkd.plan.load import parse_plan
from fedkd.plan.upload_memory import max_stored_uploads

pytestmark = pytest.mark.usefixtures("no_report")

RELAY = {"graph": "ring", "relay": True}


def small(**changes):
    data = {"clients": 7, "partition": {"samples_per_client": 10}, "transfer": {"size": 10}, "test_size": 10}
    common = {"rounds": 6, "data": data, "clients": [{"model": "mlp", "args": {"hidden": [4]}}]}
    return common | {"engine": {"kind": "inline"}} | changes


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({}, 0),
        ({"fusion": {"stale_decay": 0.5}}, 7),
        ({"asynchronous": {"buffer": 2}}, 7 + 7),
        ({"asynchronous": {"buffer": 2, "concurrency": 3}}, 3 + 7),
        ({"asynchronous": {"buffer": 2}, "fusion": {"strategy": "fedbuff"}}, 7),
        ({"topology": {"graph": "ring"}}, 0),
        ({"topology": {"graph": "ring"}, "fusion": {"stale_decay": 0.5}}, 7),
        ({"topology": RELAY, "fusion": {"stale_decay": 0.5}}, 7 * 3),  # three links away, round by round
        ({"topology": RELAY, "fusion": {"stale_decay": 0.5}, "rounds": 2}, 7 * 2),
        (
            {"topology": RELAY, "fusion": {"stale_decay": 0.5}, "rounds": 900, "data": {"clients": 201}},
            201 * 100,
        ),
        ({"topology": {"graph": "complete", "relay": True}, "fusion": {"stale_decay": 0.5}}, 7),
    ],
)
def test_the_number_of_uploads_in_memory_equals_a_hand_count(changes, number):
    assert max_stored_uploads(parse_plan(small(**changes))) == number


@pytest.mark.parametrize("graph", ["ring", "matching", "one_peer_exponential"])
def test_the_estimate_equals_the_uploads_that_a_run_stores(graph, tmp_path):
    tables = small(topology={"graph": graph, "relay": True}, fusion={"stale_decay": 0.5})
    fedkd.run(tables, out=tmp_path / "run", progress=False)
    saved = Manifest(tmp_path / "run" / "checkpoints" / "round-00006").server()
    remembered = sum("heard/uploads/" in name and name.endswith("/about") for name in saved)
    assert 7 < remembered <= max_stored_uploads(parse_plan(tables)) <= 2 * remembered


def test_uploads_beyond_memory_are_refused(monkeypatch):
    plan = parse_plan(small(asynchronous={"buffer": 2}))
    data = load_data(plan.scenario)
    monkeypatch.setattr(memory, "max_stored_uploads", lambda plan: 10**12)
    with pytest.raises(UserError, match=r"asynchronous: 1,000,000,000,000 stored uploads need 200,000"):
        memory.build_checked_models(plan, data)
