"""A Ray cluster of several local nodes."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from processes import program

import fedkd
from fedkd.cli.main import main

pytestmark = pytest.mark.slow

LONG = 300.0
"""Seconds that nodes and actors may take to come up on a busy machine."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster whose head has one CPU, for as many nodes as a test adds."""
    from ray.cluster_utils import Cluster

    handler = signal.getsignal(signal.SIGTERM)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()
    signal.signal(signal.SIGTERM, handler)  # Ray has one of its own where it starts nodes


@pytest.fixture
def tables(digits_scenario) -> dict[str, Any]:
    """A scenario that is not over before what is killed in it is dead."""
    return digits_scenario | {"rounds": 60, "checkpoint_every": 10}


def run(
    tables: dict[str, Any], cluster: Any, folder: Path, watch: Callable[[str], None] = lambda line: None
) -> tuple[int, list[str], str]:
    """Run a scenario on the cluster; return the exit status and what was said.

    Args:
        tables: The scenario.
        cluster: The cluster.
        folder: A new folder for it.
        watch: Told every line as it comes.
    """
    folder.mkdir(exist_ok=True)
    engine = {"kind": "ray", "address": cluster.address, "start_timeout": LONG} | tables.pop("more", {})
    (folder / "scenario.toml").write_text(tomli_w.dumps(tables | {"engine": engine}))
    # From elsewhere: Ray has workers find modules in the driver's working folder.
    process = program(["run", str(folder / "scenario.toml"), "--out", str(folder / "run")], cwd=folder)
    assert process.stdout is not None
    said = []
    try:
        for line in process.stdout:
            said.append(line.rstrip("\n"))
            watch(line)
        return process.wait(60), said, process.stderr.read() if process.stderr else ""
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("every", "measure", "place"),
    [(10, "fail", r"the checkpoint of round \d0"), (60, "skip", "its beginning")],
)
def test_a_lost_node_leaves_the_results_unchanged(every, measure, place, tables, cluster, tmp_path):
    """After a checkpoint and before the first; also where states are kept, which are gone with the node."""
    tables |= {"faults": {"on_client_error": measure}, "checkpoint_every": every}
    unbroken = fedkd.run(tables | {"engine": {"kind": "inline"}}, out=tmp_path / "unbroken").folder
    nodes = [cluster.add_node(num_cpus=2)]

    def lose(line: str) -> None:
        if " 12/60 " in line and nodes:
            cluster.remove_node(nodes.pop(), allow_graceful=False)

    status, said, error = run(tables, cluster, tmp_path / "ray", lose)
    assert status == 0 and "error: " not in error, error  # Ray may say a word about what it has lost
    [told] = [line for line in said if "restarting from" in line]
    assert re.fullmatch(rf"node \S+ was lost; restarting from {place} \(1 of 3\)", told)
    assert not nodes
    for file in ("metrics.jsonl", "schedule.json"):
        assert (tmp_path / "ray" / "run" / file).read_bytes() == (unbroken / file).read_bytes()


def test_losing_the_only_gpu_node_ends_the_run(tables, cluster, tmp_path):
    """Clients that were on a GPU are on none again: the run is over, and goes on where there is one."""
    tables["more"] = {"start_timeout": 60.0}
    nodes = [cluster.add_node(num_cpus=2, num_gpus=1)]

    def lose(line: str) -> None:
        if " 3/60 " in line and nodes:
            cluster.remove_node(nodes.pop(), allow_graceful=False)

    status, said, error = run(tables, cluster, tmp_path / "ray", lose)
    assert status == 3 and error.count("\n") == 1, error
    assert "the rest of the Ray cluster is too small: its clients were on GPUs, and no node has one" in error
    assert error.endswith(f"continue with: fedkd resume {tmp_path / 'ray' / 'run'}\n")
    assert "waiting for another node: its clients were on GPUs, and no node has one" in said


def test_a_node_with_another_fedkd_is_named_before_the_first_round(tables, cluster, tmp_path):
    package = Path(fedkd.__file__).parent
    shutil.copytree(package, tmp_path / "other" / "fedkd", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "other" / "fedkd" / "errors.py").open("a") as file:
        file.write("\nOTHER = 1\n")
    node = cluster.add_node(num_cpus=2, env_vars={"PYTHONPATH": str(tmp_path / "other")})
    try:
        status, said, error = run(tables, cluster, tmp_path / "ray")
    finally:
        cluster.remove_node(node)
    assert status == 2 and error.count("\n") == 1, error
    assert "engine.address: node " in error
    assert error.endswith("has another fedkd: its files differ from those here\n")
    assert not (tmp_path / "ray" / "run").exists()
    assert not any(" 1/60 " in line for line in said)


def test_two_runs_on_one_machine_are_independent(tables, tmp_path):
    path = tmp_path / "scenario.toml"
    tables |= {"rounds": 6}
    path.write_text(tomli_w.dumps(tables | {"engine": {"kind": "ray", "actors": 1, "start_timeout": LONG}}))
    outs = [tmp_path / name for name in ("one", "other")]
    processes = [program(["run", str(path), "--out", str(out), "--quiet"]) for out in outs]
    assert [process.communicate(timeout=LONG) for process in processes] == [("", ""), ("", "")]
    assert main(["run", str(path), "--out", str(tmp_path / "inline"), "--quiet", "--engine", "inline"]) == 0
    expected = (tmp_path / "inline" / "metrics.jsonl").read_bytes()
    assert [(out / "metrics.jsonl").read_bytes() for out in outs] == [expected] * 2
