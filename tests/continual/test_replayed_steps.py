"""Streams whose steps are replayed: learners that a step only reads give the same bytes as without."""

from __future__ import annotations

import sys
from itertools import cycle

import pytest
import tomli_w

import fedkd
from fedkd.continual.registry import LEARNERS
from fedkd.plan.load import load_scenario
from fedkd.training import replay
from fedkd.training.replay import Recording

READING = ["naive", "ewc", "online_ewc", "mas", "supsup", "ssnet", "exssnet"]
OPTIONS = {"ssnet": {"mask_share": 0.5}, "exssnet": {"mask_share": 0.5}, "ewc": {"strength": 5.0}}


def test_these_are_all():
    only_read = [name for name in LEARNERS.names() if LEARNERS.load(name).steps_only_read]
    assert sorted(["naive", *only_read]) == sorted(READING)


@pytest.mark.parametrize(("learner", "model"), zip(READING, cycle(["mlp", "lenet"]), strict=False))
def test_to_the_byte(learner, model, digits_scenario, tmp_path, monkeypatch):
    del digits_scenario["rounds"]
    data = digits_scenario["data"] | {
        "clients": 2,
        "partition": {"scheme": "iid", "samples_per_client": 50},
        "transfer": {"size": 24},
        "test_size": 60,
    }
    stream = {
        "learner": learner,
        "rounds_per_task": 2,
        "tasks": {"kind": "split", "count": 2, "classes_per_task": 3},
    }
    path = tmp_path / "scenario.toml"
    path.write_text(
        tomli_w.dumps(
            digits_scenario
            | {"data": data, "clients": [{"model": model}], "continual": stream | OPTIONS.get(learner, {})}
            | {"training": {"lr": 1e-3, "batch_size": 8, "local_epochs": 3}}
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
    assert len(replays) > 30
