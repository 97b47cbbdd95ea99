"""A scenario gives the same bytes wherever its clients run, and Flower's own runtime is one of the places."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from on_actors import SharedActors, shared_actors

import fedkd
from fedkd.data.load import load_data
from fedkd.plan.load import load_scenario

pytestmark = pytest.mark.usefixtures("no_report")

REPOSITORY = Path(__file__).resolve().parents[2]
BASE: dict[str, Any] = {
    "name": "agree",
    "seed": 7,
    "rounds": 4,
    "clients_per_round": 3,
    "evaluate_every": 2,
    "data": {
        "clients": 4,
        "partition": {"alpha": 1.0, "samples_per_client": 100},
        "transfer": {"size": 60},
        "test_size": 100,
    },
    "training": {
        "optimizer": "rmsprop",
        "optimizer_state": "kept",
        "lr": 1e-3,
        "schedule": "exponential",
        "batch_size": 10,
        "accumulate": 2,
        "local_epochs": 2,
        "early_stopping": {"validation": 0.2, "patience": 1},
    },
    "fusion": {
        "strategy": "knfu",
        "beta": 3.0,
        "ce_weight": 0.5,
        "kd_weight": 0.3,
        "kd_weight_decay": 0.9,
        "stale_decay": 0.5,
    },
    "engine": {"kind": "inline"},
}
"""Partial participation, not every round evaluated, γ > 0, guidance that is rehearsed, that of some clients
stale, optimisers that go on where they stopped, and stop early."""
SCENARIOS: dict[str, dict[str, Any]] = {
    # Three architectures and a forest; clients that lie, drop out and are slow; a part of the test set.
    "mixed": BASE
    | {
        "evaluate": 30,
        "metrics": ["balanced_accuracy", "brier"],
        "clients": [
            {"model": "mlp", "args": {"hidden": [32], "dropout": 0.2}},
            {"model": "lenet"},
            {"model": "cnn"},
            {"model": "random-forest", "args": {"trees": 5}},
        ],
        "faults": {"poisoned": 0.25, "poison": "imitation", "dropout": 0.3, "stragglers": 0.5},
    },
    # Weights with batch-normalisation statistics, averaged with momentum by Flower's FedAdam.
    "averaged": BASE
    | {
        "evaluate": 30,
        "metrics": ["macro_f1", "auroc", "ece", "nll"],
        "rounds": 3,
        "clients": [{"model": "resnet8", "args": {"norm": "batch"}}],
        "fusion": {"strategy": "flwr:FedAdam", "eta": 0.01},
    },
    # One model for all clients of an architecture, in whatever process they are.
    "centralized": BASE
    | {
        "rounds": 2,
        "clients": [{"model": "mlp", "args": {"hidden": [12]}}, {"model": "mlp", "args": {"dropout": 0.2}}],
        "fusion": {"strategy": "centralized"},
    },
    # Copies of clients that learn from each other, in some of the rounds.
    "measured": BASE
    | {
        "rounds": 3,
        "data": BASE["data"] | {"transfer": {"size": 30}},
        "clients": [{"model": "mlp", "args": {"hidden": [32], "dropout": 0.2}}, {"model": "resnet8"}],
        "training": {"batch_size": 10},
        "faults": {"poisoned": 0.25, "poison": "imitation"},
        "measure": {"transferability": {"rounds": [1, 3]}},
    },
    # Gaussian predictions of a numeric target, whose clients train together.
    "regression": BASE
    | {
        "data": {
            "dataset": "diabetes",
            "task": "regression",
            "clients": 4,
            "partition": {"alpha": 1.0, "bins": 5},
            "transfer": {"size": 60},
        },
        "metrics": ["rmse", "mae", "r2", "nll", "coverage"],
        "clients": [{"model": "mlp", "args": {"hidden": [12], "dropout": 0.2}}],
        "training": BASE["training"] | {"executor": "vectorised"},
        "fusion": {key: value for key, value in BASE["fusion"].items() if key != "beta"},
    },
    # Clients of one architecture that train together: who with whom does not depend on the processes.
    "together": BASE
    | {
        "rounds": 2,
        "data": BASE["data"] | {"clients": 7},
        "clients_per_round": 5,
        "clients": [{"model": "mlp", "args": {"hidden": [12]}}, {"model": "mlp", "args": {"hidden": [9]}}],
        "training": {"lr": 1e-2, "batch_size": 10, "executor": "vectorised", "vmap_size": 3},
    },
    # Nobody waits: a server's model that some learn from twice a round, and knowledge of clients at work.
    "buffered": BASE
    | {
        "rounds": 5,
        "data": BASE["data"] | {"clients": 5},
        "clients_per_round": None,
        "clients": [{"model": "mlp", "args": {"hidden": [12]}}],
        "fusion": {"strategy": "fedbuff", "server_lr": 0.5},
        "clock": {"spread": 1.5, "bandwidth": 1.0},
        "asynchronous": {"buffer": 3},
    },
    "banked": BASE
    | {
        "rounds": 5,
        "data": BASE["data"] | {"clients": 5},
        "clients_per_round": None,
        "clients": [{"model": "mlp", "args": {"hidden": [12]}}, {"model": "lenet"}],
        "clock": {"work": "steps", "seconds": 0.1, "bandwidth": 1.0, "latency": 0.1},
        "asynchronous": {"buffer": 2, "concurrency": 4},
    },
    # Pairs of clients that speak to each other, tell what they have heard, and weigh it by its age.
    "peers": BASE
    | {
        "rounds": 3,
        "clients": [{"model": "mlp", "args": {"hidden": [12]}}, {"model": "lenet"}],
        "training": {"lr": 1e-2, "batch_size": 20},
        "topology": {"graph": "matching", "relay": True},
    },
    # A stream of tasks that all learn in step, and an average that is held back from what old ones have used.
    "orthogonal": {key: value for key, value in BASE.items() if key != "rounds"}
    | {
        "data": BASE["data"] | {"clients": 3, "transfer": {"size": 20}, "test_size": 40},
        "clients_per_round": 2,
        "clients": [{"model": "lenet"}],
        "fusion": {"strategy": "flwr:FedAdam", "eta": 0.01, "orthogonal": {"width": 30}},
        "continual": {"tasks": {"kind": "split", "count": 2, "classes_per_task": 3}},
    },
    # A stream of tasks whose masks are agreed on, and weights under them each client's own.
    "masks": {key: value for key, value in BASE.items() if key != "rounds"}
    | {
        "data": BASE["data"] | {"clients": 3, "transfer": {"size": 0}, "test_size": 40},
        "clients_per_round": 2,
        "clients": [{"model": "mlp", "args": {"hidden": [24], "dropout": 0.2}}],
        "fusion": {"strategy": "fedmask", "weight_by_count": True},
        "faults": {"poisoned": 0.3, "poison": "random", "stragglers": 0.5},
        "continual": {
            "learner": "exssnet",
            "rounds_per_task": 2,
            "tasks": {"kind": "split", "count": 2, "classes_per_task": 3, "order": "shuffled"},
        },
    },
    # A stream of tasks, each client's in an order and at a clock of its own, learned under masks by networks
    # with statistics of their own for every task; old tasks are taught again by those who meet them later.
    "streamed": {key: value for key, value in BASE.items() if key != "rounds"}
    | {
        "fusion": BASE["fusion"] | {"knowledge_cache": {}, "backward_transfer": True},
        "data": BASE["data"] | {"clients": 3, "transfer": {"size": 20}, "test_size": 40},
        "clients": [{"model": "mlp", "args": {"hidden": [24], "dropout": 0.2}}, {"model": "resnet8"}],
        "clients_per_round": 2,
        "faults": {"poisoned": 0.3, "poison": "flipped", "stragglers": 0.5},
        "continual": {
            "learner": "exssnet",
            "rounds_per_task": 2,
            "evaluate_epochs": True,
            "tasks": {
                "kind": "split",
                "count": 2,
                "classes_per_task": 3,
                "order": "shuffled",
                "pace": "poisson",
            },
        },
    },
}


def write_scenario(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.toml"
    tables = {key: value for key, value in SCENARIOS[kind].items() if value is not None}
    path.write_text(tomli_w.dumps(tables))
    return path


def run_metrics(path: Path, out: Path, *overrides: str) -> bytes:
    fedkd.run(load_scenario(path, overrides), out=out)
    return (out / "metrics.jsonl").read_bytes()


class Inline:
    """Runs in this process, each made once.

    Args:
        new_folder: Makes a folder of a name.
    """

    def __init__(self, new_folder: Callable[[str], Path]) -> None:
        self._new_folder = new_folder
        self._kept: dict[str, tuple[Path, bytes]] = {}

    def __call__(self, kind: str) -> bytes:
        """Return the metrics of a kind of scenario."""
        if kind not in self._kept:
            folder = self._new_folder(kind)
            metrics = run_metrics(write_scenario(folder, kind), folder / "inline")
            assert metrics.count(b"\n") > 20
            self._kept[kind] = folder / "inline", metrics
        return self._kept[kind][1]

    def folder(self, kind: str) -> Path:
        """Return the folder of a run that was made."""
        return self._kept[kind][0]


@pytest.fixture(scope="module")
def inline(tmp_path_factory) -> Inline:
    return Inline(tmp_path_factory.mktemp)


@pytest.mark.alone
def test_ray_equals_one_process(inline, tmp_path, ray_session):
    """And that although each actor keeps one client in memory, and writes down what the others are."""
    path = write_scenario(tmp_path, "together")
    overrides = ["engine.kind=ray", "engine.actors=2", "engine.live_clients=1"]
    assert run_metrics(path, tmp_path / "ray", *overrides) == inline("together")


ON_SHARED_ACTORS = [
    *("mixed", "averaged", "centralized", "measured", "buffered", "banked", "peers"),
    *("orthogonal", "masks", "streamed", "regression"),
]


@pytest.fixture(scope="module")
def actors(ray_session, tmp_path_factory) -> Iterator[SharedActors]:
    folder = tmp_path_factory.mktemp("scenarios")
    scenarios = [load_scenario(write_scenario(folder, kind)) for kind in ON_SHARED_ACTORS]
    with shared_actors(scenarios, list(map(load_data, scenarios))) as actors:
        yield actors


@pytest.mark.parametrize("kind", ON_SHARED_ACTORS)
def test_actors_equal_one_process(kind, inline, tmp_path, actors):
    assert actors.metrics(ON_SHARED_ACTORS.index(kind), tmp_path / "run") == inline(kind)


# Nearly all of the half minute that one takes is Flower's start: one of them uses all that the protocol has.
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("streamed", marks=pytest.mark.alone),
        pytest.param("mixed", marks=pytest.mark.slow),
        pytest.param("measured", marks=pytest.mark.slow),
        pytest.param("averaged", marks=pytest.mark.slow),
        pytest.param("peers", marks=pytest.mark.slow),
        pytest.param("orthogonal", marks=pytest.mark.slow),
        pytest.param("masks", marks=pytest.mark.slow),
        pytest.param("buffered", marks=pytest.mark.slow),
        pytest.param("banked", marks=pytest.mark.slow),
    ],
)
def test_the_flower_runtime_equals_one_process(kind, inline, tmp_path):
    path = write_scenario(tmp_path, kind)
    out = tmp_path / "flower"
    done = subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / "flower.sh"), str(path), str(out)],
        timeout=240,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "metrics.jsonl").read_bytes() == inline(kind)


def test_a_resolved_scenario_repeats_the_run_in_any_process(inline, tmp_path):
    """Threads of the caller and the global generators are not read, and not moved."""
    import random

    import numpy as np
    import torch

    expected, threads = inline("mixed"), torch.get_num_threads()
    shutil.copy(inline.folder("mixed") / "scenario.toml", tmp_path / "again.toml")
    torch.manual_seed(12345)
    random.seed(12345)
    np.random.seed(12345)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    try:
        torch.set_num_threads(2)
        assert run_metrics(tmp_path / "again.toml", tmp_path / "again") == expected
    finally:
        torch.set_num_threads(threads)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    assert torch.equal(after[0], before[0]) and after[1:] == before[1:]


def test_different_seeds_give_different_results(inline, tmp_path):
    assert run_metrics(write_scenario(tmp_path, "centralized"), tmp_path / "run", "seed=1") != inline(
        "centralized"
    )


def test_evaluation_frequency_does_not_change_learning(inline, tmp_path):
    path = write_scenario(tmp_path, "mixed")
    often = run_metrics(path, tmp_path / "often", "evaluate_every=1").splitlines()
    seldom = inline("mixed").splitlines()
    assert len(often) > len(seldom) > 20
    assert set(seldom) <= set(often)
