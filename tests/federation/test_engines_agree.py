"""A scenario gives the same bytes wherever its clients run, and Flower's own runtime is one of the places."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tomli_w

import fedkd
from fedkd.plan.load import load_scenario

REPOSITORY = Path(__file__).resolve().parents[2]


def write_scenario(folder: Path, tables: dict) -> Path:
    path = folder / "scenario.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


@pytest.fixture
def mixed(digits_scenario) -> dict:
    """Three architectures, partial participation, not every round evaluated, dropout, γ > 0."""
    return digits_scenario | {
        "rounds": 4,
        "clients_per_round": 3,
        "evaluate_every": 2,
        "clients": [
            {"model": "mlp", "args": {"hidden": [32], "dropout": 0.2}},
            {"model": "lenet"},
            {"model": "cnn"},
        ],
        "fusion": {"strategy": "knfu", "beta": 3.0, "private_weight": 0.5, "stale_decay": 0.5},
    }


@pytest.fixture
def averaged(digits_scenario) -> dict:
    """Weights with batch-normalisation statistics, averaged with momentum by Flower's FedAdam."""
    return digits_scenario | {
        "rounds": 3,
        "clients_per_round": 3,
        "clients": [{"model": "resnet8", "args": {"norm": "batch"}}],
        "fusion": {"strategy": "flwr:FedAdam", "eta": 0.01},
    }


@pytest.fixture
def streamed(mixed) -> dict:
    """A stream of tasks, learned under masks by networks with statistics of their own for every task."""
    del mixed["rounds"]
    return mixed | {
        "data": mixed["data"] | {"clients": 3, "transfer": {"size": 20}, "test_size": 40},
        "clients": [{"model": "mlp", "args": {"hidden": [24]}}, {"model": "resnet8"}],
        "clients_per_round": 2,
        "continual": {
            "learner": "exssnet",
            "rounds_per_task": 2,
            "evaluate_epochs": True,
            "tasks": {"kind": "split", "count": 2, "classes_per_task": 3},
        },
    }


def run_metrics(path: Path, out: Path, *overrides: str) -> bytes:
    fedkd.run(load_scenario(path, overrides), out=out)
    return (out / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ["mixed", "averaged", "streamed"])
def test_inline_and_ray_with_one_and_two_actors_agree(kind, request, tmp_path, ray_session):
    path = write_scenario(tmp_path, request.getfixturevalue(kind))
    inline = run_metrics(path, tmp_path / "inline", "engine.kind=inline")
    one = run_metrics(path, tmp_path / "one", "engine.kind=ray", "engine.actors=1")
    two = run_metrics(path, tmp_path / "two", "engine.kind=ray", "engine.actors=2")
    assert inline.count(b"\n") > 20
    assert one == inline
    assert two == inline


@pytest.mark.parametrize("kind", ["mixed", "averaged", "streamed"])
def test_flowers_own_runtime_agrees(kind, request, tmp_path):
    path = write_scenario(tmp_path, request.getfixturevalue(kind))
    inline = run_metrics(path, tmp_path / "inline", "engine.kind=inline")
    out = tmp_path / "flower"
    subprocess.run(
        ["bash", str(REPOSITORY / "scripts" / "flower.sh"), str(path), str(out)],
        check=True,
        timeout=240,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
    )
    assert (out / "metrics.jsonl").read_bytes() == inline


def test_threads_of_the_caller_do_not_matter(mixed, tmp_path):
    import torch

    path = write_scenario(tmp_path, mixed)
    first = run_metrics(path, tmp_path / "one")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        second = run_metrics(path, tmp_path / "two")
    finally:
        torch.set_num_threads(threads)
    assert first == second


def test_a_run_does_not_read_or_move_the_global_generators(mixed, tmp_path):
    import random

    import numpy as np
    import torch

    path = write_scenario(tmp_path, mixed)
    first = run_metrics(path, tmp_path / "one")
    torch.manual_seed(12345)
    random.seed(12345)
    np.random.seed(12345)  # noqa: NPY002
    before = torch.get_rng_state()
    second = run_metrics(path, tmp_path / "two")
    assert first == second
    assert torch.equal(before, torch.get_rng_state())


def test_seeds_differ(mixed, tmp_path):
    path = write_scenario(tmp_path, mixed)
    assert run_metrics(path, tmp_path / "a", "seed=1") != run_metrics(path, tmp_path / "b", "seed=2")


def test_evaluating_less_often_changes_nothing_that_is_learned(mixed, tmp_path):
    path = write_scenario(tmp_path, mixed)
    often = fedkd.run(load_scenario(path, ["evaluate_every=1"]), out=tmp_path / "often").metrics()
    seldom = fedkd.run(load_scenario(path, ["evaluate_every=4"]), out=tmp_path / "seldom").metrics()
    # The gain is measured where the guidance arrives; all else must be what the frequent evaluation saw.
    guided = ("fusion_gain", "agreement", "guidance_kl", "positive_flips", "negative_flips")
    kept = [row for row in seldom if row["metric"] not in guided]
    assert len(kept) > 10
    assert all(row in often for row in kept)


def test_the_resolved_scenario_repeats_the_run(mixed, tmp_path):
    path = write_scenario(tmp_path, mixed)
    first = run_metrics(path, tmp_path / "first")
    shutil.copy(tmp_path / "first" / "scenario.toml", tmp_path / "again.toml")
    assert run_metrics(tmp_path / "again.toml", tmp_path / "second") == first
