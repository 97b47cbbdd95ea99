"""Runs of one process share data and recorded steps: each has the bytes of a run by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedkd
from fedkd.clients.factory import steps_key
from fedkd.data import load_data
from fedkd.plan import parse_plan
from fedkd.storage import shared_between_runs
from fedkd.storage.between_runs import RunCache, run_cache
from fedkd.training.fast import replay

pytestmark = pytest.mark.usefixtures("no_report")

MLP = {"model": "mlp", "args": {"hidden": [16]}}
BASE: dict[str, Any] = {
    "rounds": 2,
    "data": {
        "dataset": "digits",
        "clients": 3,
        "partition": {"scheme": "dirichlet", "alpha": 1.0, "samples_per_client": 60},
        "transfer": {"source": "holdout", "size": 60},
        "test_size": 60,
    },
    "clients": [MLP],
    "training": {"lr": 0.01, "batch_size": 16},
    "fusion": {"strategy": "knfu"},
    "engine": {"kind": "inline"},
}
STEPS: list[dict[str, Any]] = [
    {},
    {"fusion.temperature": 3.0},
    {"fusion.ce_weight": 0.5},
    {"fusion.kd_weight": 0.3},
    {"training.lr": 0.02},
    {"training.weight_decay": 0.1},
    {"training.clip_norm": 0.5},
    {"training.optimizer": "adamw", "training.weight_decay": 0.1},
    {"training.optimizer": "sgd", "training.momentum": 0.9},
    {"training.optimizer": "sgd", "fusion": {"strategy": "scaffold"}},
    {"clients": [MLP | {"args": MLP["args"] | {"dropout": 0.2}}]},
    {"clients": [MLP | {"args": MLP["args"] | {"dropout": 0.5}}]},
    {"fusion": {"strategy": "flwr:FedProx", "proximal_mu": 0.1}},
    {"fusion": {"strategy": "flwr:FedProx", "proximal_mu": 1.0}},
    *({"fusion": {"strategy": name}} for name in ("fedmd", "dsfl", "comet", "local", "flwr:FedAvg")),
    *({"fusion": {"strategy": name}} for name in ("moon", "fedntd", "fedrep", "ditto")),
]
"""Changes of a step, each of which needs recordings of its own."""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record the third step of a kind, and begin with nothing shared."""
    monkeypatch.setattr(replay, "PATIENCE", 2)
    monkeypatch.setattr("fedkd.storage.between_runs._of_process", RunCache())


def tables(changes: dict[str, Any], seed: int = 1) -> dict[str, Any]:
    made = {key: dict(value) if isinstance(value, dict) else value for key, value in BASE.items()}
    for key, value in changes.items():
        table, _, name = key.rpartition(".")
        (made[table] if table else made)[name] = value
    return made | {"seed": seed}


def metrics(changes: dict[str, Any], seed: int, folder: Path) -> bytes:
    fedkd.run(tables(changes, seed), out=folder, progress=False)
    return (folder / "metrics.jsonl").read_bytes()


def test_runs_that_share_have_the_bytes_of_runs_by_themselves(tmp_path) -> None:
    runs = [(changes, seed) for seed in (1, 2) for changes in STEPS]
    alone = [metrics(*run, tmp_path / f"alone-{n}") for n, run in enumerate(runs)]
    with shared_between_runs():
        shared = [metrics(*run, tmp_path / f"shared-{n}") for n, run in enumerate(runs)]
    assert shared == alone


def test_a_second_seed_records_nothing_anew(tmp_path, monkeypatch) -> None:
    with shared_between_runs():
        metrics({}, 1, tmp_path / "first")
        monkeypatch.setattr(replay, "record", lambda *given: pytest.fail("it is recorded again"))
        metrics({}, 2, tmp_path / "second")


def test_every_change_of_a_step_has_a_key_of_its_own() -> None:
    keys = [steps_key(parse_plan(tables(changes))) for changes in STEPS]
    assert len(set(keys)) == len(STEPS)
    elsewhere = {"data.clients": 4, "rounds": 3, "evaluate_every": 3}
    assert steps_key(parse_plan(tables(elsewhere, 2))) == keys[0]


def test_data_are_loaded_once_for_equal_keys() -> None:
    scenario = parse_plan(tables({})).scenario
    with shared_between_runs():
        data = load_data(scenario)
        assert load_data(parse_plan(tables({"training.lr": 0.1})).scenario) is data
        other = load_data(scenario.model_copy(update={"seed": 2}))
    assert load_data(scenario) is not data and run_cache() is None
    assert not np.array_equal(other.x, data.x)


def test_the_least_recent_values_leave_a_full_cache() -> None:
    cache = RunCache(10)
    for name in "ab":
        cache.put(name, name, 4)
    assert cache.get("a") == "a"
    cache.put("c", "c", 4)
    cache.put("large", "large", 6)
    assert [cache.get(name) for name in ("a", "b", "c", "large")] == ["a", None, "c", None]
