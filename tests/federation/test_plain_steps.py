"""`training.fast = false`: the plain code gives the results of the fast one."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tomli_w

import fedkd
from fedkd.plan.load import load_scenario
from fedkd.training.fast import replay
from fedkd.training.fast.recording import Recording

pytestmark = pytest.mark.usefixtures("no_report")

TRAINING = {"lr": 0.01, "batch_size": 8, "local_epochs": 4}
SGD = TRAINING | {"optimizer": "sgd", "lr": 0.05}
MLP = {"model": "mlp", "args": {"hidden": [24, 20]}}
STREAM = {"rounds_per_task": 1, "tasks": {"kind": "permuted", "count": 3}}
SCALES = {"threshold": 0.8, "relatedness": 0.0}


def metrics(tables, folder, monkeypatch, *, fast) -> tuple[bytes, int]:
    """Return a run's metrics, and how many steps were replayed."""
    monkeypatch.setattr(replay, "PATIENCE", 2)
    replays: list[int] = []
    run = Recording.replay
    monkeypatch.setattr(Recording, "replay", lambda own, tensors: replays.append(1) or run(own, tensors))
    folder.mkdir()
    tables = tables | {"training": tables["training"] | {"fast": fast}}
    (folder / "scenario.toml").write_text(tomli_w.dumps(tables))
    fedkd.run(load_scenario(folder / "scenario.toml"), out=folder / "run")
    monkeypatch.undo()
    return (folder / "run" / "metrics.jsonl").read_bytes(), len(replays)


def stream(tables, learner, **options):
    tables = {name: table for name, table in tables.items() if name != "rounds"}
    return tables | {"continual": {"learner": learner} | STREAM | options, "fusion": {"strategy": "fedmd"}}


@pytest.fixture
def tables(digits_scenario) -> dict[str, Any]:
    data = digits_scenario["data"] | {
        "clients": 2,
        "partition": {"scheme": "iid", "samples_per_client": 40},
        "test_size": 60,
    }
    return digits_scenario | {"data": data, "training": TRAINING, "clients": [MLP]}


@pytest.mark.parametrize("learner", [None, "lwf", "er"])
def test_replayed_steps_equal_plain_ones_to_the_bit(learner, tables, tmp_path, monkeypatch):
    whole = tables if learner is None else stream(tables, learner)
    fast, replayed = metrics(whole, tmp_path / "fast", monkeypatch, fast=True)
    plain, none = metrics(whole, tmp_path / "plain", monkeypatch, fast=False)
    assert fast == plain
    assert replayed > 20 and none == 0


@pytest.mark.parametrize(
    "change",
    [
        {"clients": [{"model": "lenet"}]},
        {"learner": "gpm", "threshold": 0.8},
        {"learner": "trgp", **SCALES},
        {"learner": "cuber", **SCALES, "correlation": -1.0, "strength": 0.05},
    ],
    ids=lambda change: change.get("learner", "lenet"),
)
def test_fast_and_plain_sums_differ_by_rounding_only(change, tables, tmp_path, monkeypatch):
    """Losses agree within 1e-3, as float32 sums of some hundred terms do after 60 steps."""
    whole = stream(tables | {"training": SGD}, **change) if "learner" in change else tables | change
    (fast, replayed), (plain, none) = (
        metrics(whole, tmp_path / str(fast), monkeypatch, fast=fast) for fast in (True, False)
    )
    assert replayed > 20 and none == 0
    assert fast != plain, "the fast code has run"
    rows = [list(map(json.loads, lines.splitlines())) for lines in (fast, plain)]
    assert len(rows[0]) == len(rows[1])
    for one, other in zip(*rows, strict=True):
        assert one.keys() == other.keys()
        found = [name for name in one if "loss" in name]
        assert [one[name] for name in found] == pytest.approx([other[name] for name in found], rel=1e-3)
