"""Nodes with one client's data each give the simulation's bytes, and send knowledge and nothing else."""

from __future__ import annotations

import pytest

import fedkd

STREAM = {
    "rounds": None,
    "clients": [{"model": "mlp", "args": {"hidden": [12]}}],
    "continual": {
        "learner": "ewc",
        "rounds_per_task": 1,
        "tasks": {"kind": "permuted", "count": 2},
    },
}
KINDS = {
    "knfu": {},
    "averaged": {"clients": [{"model": "lenet"}], "fusion": {"strategy": "flwr:FedAdam", "eta": 0.01}},
    "streamed": STREAM,
    "absent": {"clients_per_round": 2, "fusion": {"strategy": "knfu", "stale_decay": 0.5}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_they_give_the_bytes_of_the_simulation(deployed, tmp_path, kind):
    found = deployed(**KINDS[kind])
    simulated = fedkd.run(found.plan, out=tmp_path / "simulated", progress=False, report=False)
    assert found.run(tmp_path / "deployed") == (simulated.folder / "metrics.jsonl").read_bytes()
