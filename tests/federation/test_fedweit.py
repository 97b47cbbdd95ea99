"""Whole FedWeIT runs with individual orders and paces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stopping import StopInRound

import fedkd
from fedkd.errors import Interrupted
from fedkd.federation.checkpoint import CheckpointStore
from fedkd.plan.load import parse_scenario
from fedkd.tracking.recorder import read_metrics

pytestmark = pytest.mark.usefixtures("no_report")

TASKS, ROUNDS = 3, 2


@pytest.fixture
def tables(digits_scenario) -> dict:
    """Three clients of a convolutional network."""
    tables = digits_scenario | {
        "clients": [{"model": "lenet"}],
        "fusion": {"strategy": "fedweit"},
        "continual": {
            "learner": "fedweit",
            "rounds_per_task": ROUNDS,
            "tasks": {"kind": "split", "count": TASKS, "classes_per_task": 2, "order": "shuffled"},
        },
    }
    del tables["rounds"]
    data = {"clients": 3, "partition": {"scheme": "iid", "samples_per_client": 30}, "test_size": 30}
    return tables | {"data": digits_scenario["data"] | data | {"transfer": {"size": 0}}}


def run(tables: dict, out: Path, **options) -> Path:
    return fedkd.run(parse_scenario(tables), out=out, **options).folder


def parts_in(arrays) -> set[tuple[int, int]]:
    """Return client and task of all own parts of clients that are kept."""
    keys = [name.partition("known/")[2].split("/") for name in arrays if "known/" in name]
    return {(int(client), int(task)) for client, task, _ in keys}


def test_fedweit_resumes_with_absent_and_poisoned_clients(tables, tmp_path):
    tasks = tables["continual"]["tasks"] | {"count": 2, "pace": "uniform", "pace_range": [1, 2]}
    tables["continual"] = tables["continual"] | {"tasks": tasks}
    tables["continual"].pop("rounds_per_task")
    tables |= {"clients_per_round": 2, "evaluate_every": 2}
    tables["faults"] = {"dropout": 0.2, "poisoned": 0.3, "poison": "random"}
    tables["training"] = tables["training"] | {"optimizer": "adam", "optimizer_state": "kept"}
    unbroken = run(tables, tmp_path / "unbroken")
    folder = tmp_path / "broken"
    with pytest.raises(Interrupted):
        run(tables, folder, observers=[StopInRound()])
    for _ in range(2):
        with pytest.raises(Interrupted):
            fedkd.resume(folder, observers=[StopInRound()])
    fedkd.resume(folder)
    assert (unbroken / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()


def test_parts_reach_all_clients_and_averaging_preserves_learning(tables, tmp_path):
    # Nothing is small enough to be made zero at the end of a task: what remains is what guidance would do.
    tables["continual"] = tables["continual"] | {"threshold": 0.0}
    tables["clients"] = [{"model": "mlp", "args": {"hidden": [12, 8]}}]
    folder = run(tables, tmp_path / "run")
    rows = [row for row in read_metrics(folder) if row["client"] is not None]
    spatial = [row["value"] for row in rows if row["metric"] == "spatial_forgetting"]
    assert spatial and set(spatial) == {0.0}
    trained, guided = (
        {(r["round"], r["client"], r["split"]): r["value"] for r in rows if r["metric"] == name}
        for name in ("accuracy_before_fusion", "accuracy")
    )
    assert trained and all(guided[key] == value for key, value in trained.items())

    checkpoint = CheckpointStore(folder).latest()
    parts = {n.split("known/")[1].rpartition("/")[0] for n in checkpoint.server if "memory/known/" in n}
    assert parts == {f"{client}/{task}" for client in range(3) for task in range(TASKS)}
    for client, state in checkpoint.clients.items():
        lent = {
            n.split("known/")[1].rpartition("/")[0] for n in state if n.startswith("learner/memory/known/")
        }
        assert {int(key[0]) for key in lent} == set(range(3)) - {client}
    # Bases of 2 layers, 20 units; the last parts of everybody, all but a few weights of each.
    weights, units = 64 * 12 + 12 * 8, 20
    up = sum(np.ceil(0.7 * n) * fan_in for n, fan_in in ((12, 64), (8, 12))) * 4 + -(-units // 8)
    total = json.loads((folder / "summary.json").read_text())["final"]["bytes_up"]
    sparse = TASKS * (-(-weights // 8) + 4)
    least, most = (3 * (TASKS * ROUNDS * up + sparse + TASKS * share * weights * 4) for share in (0.3, 1.0))
    assert least < total <= most
