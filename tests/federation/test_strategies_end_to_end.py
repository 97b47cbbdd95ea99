"""Every built-in strategy in a whole federation: mixed models, absent clients, interruptions, two engines."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tomli_w

import fedkd
from fedkd.errors import Interrupted
from fedkd.fusion.registry import STRATEGIES, make_strategy
from fedkd.scenario.load import load_scenario
from fedkd.tracking.events import RunObserver

ROUNDS = 3
SMALL: dict[str, dict[str, Any]] = {
    "dsfl": {"samples_per_round": 20},
    "feddf": {"server_epochs": 2},
    "fedet": {"server_model": "mlp", "server_args": {"hidden": [16]}, "server_epochs": 2},
    "knfu": {"stale_decay": 0.5, "distribution_momentum": 0.5},
    "scarlet": {"samples_per_round": 20, "cache_rounds": 1},
    "selective_fd": {"ambiguity": 2.0},
}
"""Hyper-parameters that make a strategy cheap, or make it use what its defaults leave aside."""
MLP = {"model": "mlp", "args": {"hidden": [84]}}  # as many features as LeNet, which `fedproto` compares
NETWORKS = [MLP, {"model": "lenet"}]
FOREST = {"model": "random-forest", "args": {"trees": 5}}


class StopAfter(RunObserver):
    """Asks this process to stop while a round is running."""

    def __init__(self, round: int) -> None:
        self._round = round

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        if (round, phase, done) == (self._round, "train", 1):
            os.kill(os.getpid(), signal.SIGINT)


def clients_for(strategy: str) -> list[dict[str, Any]]:
    """Return the most mixed federation that a strategy can serve."""
    needs = make_strategy(strategy, {}).needs
    if "one_architecture" in needs:
        return [MLP]
    return NETWORKS if needs & {"gradients", "features", "weights"} else [*NETWORKS, FOREST]


def write(folder: Path, tables: dict[str, Any], strategy: str, **changes: Any) -> Path:
    training = {"lr": 0.01, "batch_size": 20}
    if "plain_sgd" in make_strategy(strategy, {}).needs:
        training |= {"optimizer": "sgd"}
    path = folder / "scenario.toml"
    fusion = {"strategy": strategy, **SMALL.get(strategy, {})}
    path.write_text(tomli_w.dumps(tables | {"training": training, "fusion": fusion} | changes))
    return path


@pytest.fixture
def tables(digits_scenario) -> dict[str, Any]:
    """Four clients, of whom three are sampled and some drop out."""
    partition = digits_scenario["data"]["partition"] | {"samples_per_client": 50}
    return digits_scenario | {
        "rounds": ROUNDS,
        "clients_per_round": 3,
        "data": digits_scenario["data"] | {"partition": partition, "test_size": 100},
        "faults": {"dropout": 0.3, "stragglers": 0.3},
    }


def run(path: Path, out: Path, *overrides: str) -> bytes:
    result = fedkd.run(load_scenario(path, overrides), out=out)
    rows = result.metrics()
    assert rows and all(math.isfinite(row["value"]) for row in rows)
    last = [row for row in rows if row["round"] == result.summary["rounds"] and row["metric"] == "accuracy"]
    assert {row["split"] for row in last} == {"local", "global"}
    return (out / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("strategy", sorted(STRATEGIES.builtin))
def test_mixed_with_absent_clients_interrupted_and_on_actors(strategy, tables, tmp_path, ray_session):
    path = write(tmp_path, tables, strategy, clients=clients_for(strategy))
    unbroken = run(path, tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        fedkd.run(load_scenario(path), out=tmp_path / "stopped", observers=[StopAfter(1)])
    fedkd.resume(tmp_path / "stopped")
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == unbroken
    assert run(path, tmp_path / "actors", "engine.kind=ray", "engine.actors=2") == unbroken


@pytest.mark.parametrize("strategy", sorted(STRATEGIES.builtin))
def test_alike_clients_and_a_client_alone(strategy, tables, tmp_path):
    whole = {"rounds": 2, "clients": [MLP], "faults": {}}
    everyone = {key: value for key, value in tables.items() if key != "clients_per_round"}
    run(write(tmp_path, everyone, strategy, **whole), tmp_path / "alike")
    alone = whole | {"data": tables["data"] | {"clients": 1}}
    run(write(tmp_path, everyone, strategy, **alone), tmp_path / "alone")
