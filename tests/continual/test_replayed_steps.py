"""Streams with replayed steps equal plain ones byte for byte."""

from __future__ import annotations

import sys
from itertools import cycle

import pytest
import tomli_w
import torch
import torch.nn.functional as F
from small_learning import SGD, small_stream, small_units, start, train

import fedkd
from fedkd.continual.registry import LEARNERS
from fedkd.continual.subspace.cuber import CUBER
from fedkd.models.zoo.mlp import mlp
from fedkd.plan.load import load_scenario
from fedkd.training.fast import replay
from fedkd.training.fast.recording import Recording
from fedkd.training.fast.replay import Replays

pytestmark = pytest.mark.usefixtures("no_report")

READING = [
    *("naive", "ewc", "online_ewc", "mas", "supsup", "ssnet", "exssnet", "si"),
    *("gpm", "trgp", "cuber", "er", "agem", "lwf"),
]
OPTIONS = {
    "ssnet": {"mask_share": 0.5},
    "exssnet": {"mask_share": 0.5},
    "ewc": {"strength": 5.0},
    "gpm": {"threshold": [0.9, 0.95]},
    "trgp": {"threshold": 0.9, "relatedness": 0.0},
    "cuber": {"threshold": 0.9, "relatedness": 0.0, "correlation": -0.05},
    "er": {"memory_size": 30},
    "agem": {"memory_size": 30, "reference_batch_size": 12},
}


def test_the_list_names_all_learners_with_replayed_steps():
    only_read = [name for name in LEARNERS.names() if vars(LEARNERS.load(name)).get("recordable")]
    assert sorted(["naive", *only_read]) == sorted(READING)


@pytest.mark.parametrize(("learner", "model"), zip(READING, cycle(["mlp", "lenet"]), strict=False))
def test_replayed_streams_equal_plain_ones_byte_for_byte(
    learner, model, digits_scenario, tmp_path, monkeypatch
):
    del digits_scenario["rounds"]
    data = digits_scenario["data"] | {
        "clients": 1,
        "partition": {"scheme": "iid", "samples_per_client": 50},
        "transfer": {"size": 24},
        "test_size": 60,
    }
    stream = {
        "learner": learner,
        "rounds_per_task": 1,
        "tasks": {"kind": "split", "count": 3, "classes_per_task": 3},
    }
    path = tmp_path / "scenario.toml"
    path.write_text(
        tomli_w.dumps(
            digits_scenario
            | {"data": data, "clients": [{"model": model}], "continual": stream | OPTIONS.get(learner, {})}
            | {"training": {"lr": 1e-3, "batch_size": 8, "local_epochs": 4}}
        )
    )
    replays: list[int] = []
    run = Recording.replay

    def noted(self, tensors):
        replays.append(len(tensors))
        return run(self, tensors)

    monkeypatch.setattr(Recording, "replay", noted)
    runs = []
    for patience in (sys.maxsize, 2):
        monkeypatch.setattr(replay, "PATIENCE", patience)
        fedkd.run(load_scenario(path), out=tmp_path / str(patience))
        runs.append((tmp_path / str(patience) / "metrics.jsonl").read_bytes())
        assert bool(replays) == (patience == 2)
    assert runs[0] == runs[1]
    assert len(replays) > 15


def test_replayed_steps_follow_changes_of_the_regime(monkeypatch):
    """CUBER decides by values in every step: what a recording says of one no longer holds after another."""
    monkeypatch.setattr(replay, "PATIENCE", 2)
    replayed: list[bool] = []
    run = Replays.replay

    def noted(self, *arguments):
        told = run(self, *arguments)
        replayed.append(told is not None)
        return told

    monkeypatch.setattr(Replays, "replay", noted)
    stream = small_stream(3, samples=48, shape=(12,), seed=2)
    nets, regimes = [], []
    for kind in (None, "replayed"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = mlp((12,), 2, hidden=[24, 20], bias=False)
        learner = CUBER(threshold=0.8, relatedness=0.0, correlation=-0.1, strength=0.05)
        learning = start(learner, network, stream, small_units(3, shared=True), batch_size=4)
        for task, arrays in enumerate(stream):
            learning.enter(task)
            train(
                learning, arrays, lambda model, x, y: F.cross_entropy(model(x), y), optimizer=SGD,
                epochs=range(4), task_epochs=4, batch_size=4, generator=torch.Generator().manual_seed(task),
                seed=task, kind=kind, replayable=True,
            )  # fmt: skip
            regimes += [name.clone() for key, name in learning.context.memory.items() if "regime/" in key]
            learning.end()
        nets.append(network)
    assert all(torch.equal(*pair) for pair in zip(*(net.parameters() for net in nets), strict=True))
    half = len(regimes) // 2
    assert all(torch.equal(*pair) for pair in zip(regimes[:half], regimes[half:], strict=True))
    assert any(bool((now != begun).any()) for begun, now in regimes), "none has changed"
    assert sum(replayed) > 40


PLUG_IN = """
from dataclasses import dataclass
from typing import ClassVar

from fedkd.continual.fast_steps import FastSteps
from fedkd.continual.learner import Learner
from fedkd.fusion.distillation.fedmd import FedMD
from fedkd.training.losses import logits_mse


@dataclass(frozen=True)
class Mean(FedMD):
    name: ClassVar[str] = "mean"
    {flag}

    def loss(self, student_logits, targets):
        return 0.5 * logits_mse(student_logits, targets)


@dataclass(frozen=True)
class Decay(FastSteps, Learner):
    name: ClassVar[str] = "decay"
    {flag}

    def penalty(self, context, step):
        return 0.01 * sum(p.square().sum() for p in context.network.parameters())
"""


@pytest.mark.parametrize("part", ["fusion", "continual"])
def test_declared_plug_ins_replay_byte_for_byte(part, digits_scenario, tmp_path, monkeypatch):
    monkeypatch.setattr(replay, "PATIENCE", 2)
    replays: list[int] = []
    run = Recording.replay

    def noted(self, tensors):
        replays.append(len(tensors))
        return run(self, tensors)

    monkeypatch.setattr(Recording, "replay", noted)
    data = digits_scenario["data"] | {"partition": {"scheme": "iid", "samples_per_client": 50}, "clients": 2}
    training = {"lr": 0.01, "batch_size": 5, "local_epochs": 2}
    tables = digits_scenario | {"training": training, "data": data}
    runs, counts = [], []
    for number, flag in enumerate(("", "recordable: ClassVar[bool] = True")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / f"plug_in_{part}_{number}.py").write_text(PLUG_IN.format(flag=flag))
        if part == "fusion":
            tables["fusion"] = {"strategy": f"plug_in_{part}_{number}:Mean", "distill_epochs": 3}
        else:
            tables.pop("rounds", None)
            tables["fusion"] = {"strategy": "local"}
            tables["continual"] = {
                "learner": f"plug_in_{part}_{number}:Decay",
                "rounds_per_task": 1,
                "tasks": {"kind": "split", "count": 2, "classes_per_task": 3},
            }
        (folder / "scenario.toml").write_text(tomli_w.dumps(tables))
        before = len(replays)
        fedkd.run(load_scenario(folder / "scenario.toml"), out=folder / "run")
        runs.append((folder / "run" / "metrics.jsonl").read_bytes())
        counts.append(len(replays) - before)
    assert runs[0] == runs[1]
    assert counts[1] > counts[0] + 20
    if part == "continual":
        assert not counts[0]
