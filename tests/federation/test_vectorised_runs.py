"""Runs whose clients train together: the loop's figures but for rounding, and the same bytes every time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from stopping import StopInRound

import fedkd
from fedkd.errors import Interrupted
from fedkd.plan.load import load_scenario
from fedkd.training.fast import vectorised
from fedkd.training.job import TrainJob

pytestmark = pytest.mark.usefixtures("no_report")

MLP = [{"model": "mlp", "args": {"hidden": [12]}}]
SGD = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.5, "batch_size": 10, "local_epochs": 2}
KEPT = {"optimizer": "sgd", "momentum": 0.9, "optimizer_state": "kept", "lr": 0.01, "batch_size": 16}
STREAM = {"rounds_per_task": 1, "tasks": {"kind": "split", "count": 3, "classes_per_task": 3}}
SCENARIOS: dict[str, dict[str, Any]] = {
    # Two architectures; whoever is absent, slow or of little data trains with the rest.
    "knowledge": {
        "clients": [*MLP, {"model": "lenet"}],
        "training": KEPT,
        "fusion": {"strategy": "knfu", "ce_weight": 0.3, "kd_weight": 0.5, "kd_weight_decay": 0.9},
        "faults": {"dropout": 0.2, "stragglers": 0.4},
        "data": {"partition": {"alpha": 0.3}},
    },
    "set out on labels": {"fusion": {"strategy": "fedmd", "pretrain_epochs": 2}},
    "FedProx": {"fusion": {"strategy": "flwr:FedProx", "proximal_mu": 0.1}, "training": SGD},
    "scaffold": {"fusion": {"strategy": "scaffold"}, "training": SGD | {"momentum": 0.0, "clip_norm": 1.0}},
    "phases": {
        "fusion": {"strategy": "fedrep", "head_epochs": 2},
        "training": SGD | {"optimizer_state": "kept"},
    },
    "a stream": {
        "data": {"partition": {"samples_per_client": 50}},
        "fusion": {"strategy": "flwr:FedAvg"},
        "training": SGD,
        "continual": STREAM,
    },
}


@pytest.fixture(params=SCENARIOS)
def path(request, digits_scenario, tmp_path) -> Path:
    tables = SCENARIOS[request.param]
    data = digits_scenario["data"] | {"clients": 5, "test_size": 100} | tables.get("data", {})
    whole = digits_scenario | {"rounds": 3, "clients": MLP} | tables | {"data": data}
    if "continual" in whole:
        del whole["rounds"]
    found = tmp_path / "scenario.toml"
    found.write_text(tomli_w.dumps(whole))
    return found


@pytest.fixture(autouse=True)
def alone_or_not(monkeypatch) -> Iterator[list[int]]:
    """Take down how many jobs are run together at a time."""
    numbers: list[int] = []
    run = vectorised.fit_together

    def noted(jobs: list[TrainJob]):
        numbers.append(len(jobs))
        return run(jobs)

    monkeypatch.setattr(vectorised, "fit_together", noted)
    return numbers


TOGETHER = ["training.executor=vectorised", "training.vmap_size=4"]


def figures(path: Path, out: Path, *overrides: str) -> dict[tuple, float]:
    fedkd.run(load_scenario(path, overrides), out=out)
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {
        (row["round"], row["client"], row["split"], row["metric"], row.get("task")): row["value"]
        for row in rows
    }


def test_a_vectorised_run_equals_the_loop_within_rounding_and_resumes(path, tmp_path, alone_or_not):
    alone = figures(path, tmp_path / "alone")
    assert not alone_or_not
    together = figures(path, tmp_path / "together", *TOGETHER)
    assert alone_or_not and max(alone_or_not) > 2
    assert together.keys() == alone.keys()
    names = [key for key in alone if "seconds" not in key[3]]
    np.testing.assert_allclose([together[n] for n in names], [alone[n] for n in names], rtol=1e-5, atol=1e-5)

    stopped = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        fedkd.run(load_scenario(path, TOGETHER), out=stopped, observers=[StopInRound(2)])
    fedkd.resume(stopped)
    assert (stopped / "metrics.jsonl").read_bytes() == (tmp_path / "together" / "metrics.jsonl").read_bytes()
