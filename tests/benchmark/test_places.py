"""Checks of folders, data and plug-ins on other machines of a bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedkd.benchmark.places as module
from fedkd.benchmark.places import MARK, check_all_nodes, data_digest, inspect_node
from fedkd.data.load import load_data
from fedkd.engine.ray.cluster import RayCluster
from fedkd.engine.ray.nodes import alive_nodes
from fedkd.errors import UserError
from fedkd.plan.load import parse_plan

pytestmark = pytest.mark.usefixtures("read_once")


def job(tables: dict[str, Any], **changes: Any) -> str:
    return parse_plan(tables | changes).scenario.model_dump_json()


def test_a_different_folder_on_a_node_is_reported(digits_scenario, tmp_path):
    told = inspect_node(job(digits_scenario), str(tmp_path))
    assert told.trouble == f"does not see {tmp_path}; put the bench on a disk that all nodes share"
    (tmp_path / MARK).touch()
    assert inspect_node(job(digits_scenario), str(tmp_path)).trouble == ""


def test_data_sets_are_distinguished_by_their_content(digits_scenario):
    place = inspect_node(job(digits_scenario))
    data = load_data(parse_plan(digits_scenario).scenario)
    assert place.data == data_digest(data)
    assert inspect_node(job(digits_scenario, seed=8)).data != place.data
    data.test_y[0] += 1
    assert data_digest(data) != place.data


def test_data_sets_of_a_stream_are_distinguished_by_content(digits_scenario):
    tasks = {"kind": "split", "count": 2, "classes_per_task": 3}
    digits_scenario["data"]["partition"] = {"scheme": "iid", "samples_per_client": 40}
    digits_scenario["data"]["transfer"]["size"] = 20
    digits_scenario |= {"continual": {"learner": "naive", "tasks": tasks}}
    del digits_scenario["rounds"]
    places = [inspect_node(job(digits_scenario, seed=seed)) for seed in (1, 1, 2)]
    assert places[0] == places[1] != places[2] and not places[0].trouble


def test_a_missing_plug_in_on_a_node_is_reported(digits_scenario):
    gone = parse_plan(digits_scenario).scenario.model_copy(update={"plugins": ["gone_from_there"]})
    trouble = inspect_node(gone.model_dump_json()).trouble
    assert trouble.startswith("cannot run a cell: plugins.0: cannot import 'gone_from_there'")


@pytest.mark.slow
def test_all_nodes_are_checked(digits_scenario, tmp_path, monkeypatch, ray_session):
    """With this machine in place of another one."""
    cluster = RayCluster(alive_nodes(), owned=False)
    monkeypatch.setattr(module, "other_nodes", lambda engine, cluster, share: list(cluster.nodes))
    jobs = [(job(digits_scenario), str(tmp_path / "runs" / "a")), (job(digits_scenario, seed=8), "")]
    engine = parse_plan(digits_scenario).scenario.engine
    check_all_nodes(jobs, engine, cluster, 0.0)
    assert not list((tmp_path / "runs").iterdir()), "nothing is left behind"
    monkeypatch.setattr(module, "data_digest", lambda data: "another")
    with pytest.raises(UserError, match=r"^engine.address: node \S+ has other data than this machine$"):
        check_all_nodes(jobs, engine, cluster, 0.0)
    monkeypatch.setattr(Path, "touch", lambda path: None)
    with pytest.raises(UserError, match=r"node \S+ does not see .*runs; put the bench on a disk"):
        check_all_nodes(jobs, engine, cluster, 0.0)
