"""A run killed within a task resumes exactly."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from processes import Fork

import fedkd
from fedkd.plan.schedule import Schedule

pytestmark = pytest.mark.usefixtures("no_report")

MORTAL = """
import os, signal
from dataclasses import dataclass
from typing import ClassVar

from fedkd.continual.{module} import {learner}

STEPS = []


@dataclass(frozen=True)
class Mortal({learner}):
    name: ClassVar[str] = "mortal"

    def project(self, context, gradients):
        STEPS.append(context.task)
        if len(STEPS) == int(os.environ.get("LAST_STEP", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().project(context, gradients)
"""
TABLES: dict[str, Any] = {
    "name": "mortal",
    "seed": 3,
    "data": {
        "dataset": "digits",
        "clients": 3,
        "partition": {"scheme": "iid", "samples_per_client": 24},
        "transfer": {"size": 20},
        "test_size": 40,
    },
    "clients": [{"model": "mlp", "args": {"hidden": [24]}}, {"model": "mlp", "args": {"hidden": [16]}}],
    "training": {"batch_size": 8, "local_epochs": 2, "optimizer_state": "kept"},
    "fusion": {"strategy": "knfu", "beta": 1.0, "knowledge_cache": {"decay": 0.9}},
    "continual": {
        "rounds_per_task": 3,
        "tasks": {
            "kind": "split",
            "count": 2,
            "classes_per_task": 3,
            "order": "shuffled",
            "pace": "poisson",
        },
    },
    "engine": {"kind": "inline"},
}


@pytest.mark.parametrize(
    ("module", "learner", "step"), [("masks.ssnet", "ExSSNeT", 40), ("subspace.cuber", "CUBER", 60)]
)
def test_a_run_killed_within_a_task_resumes_exactly(module, learner, step, tmp_path):
    plugin = f"{learner.lower()}_dies_at_step_{step}"
    (tmp_path / f"{plugin}.py").write_text(MORTAL.format(module=module, learner=learner))
    scenario = tmp_path / "scenario.toml"
    continual = TABLES["continual"] | {"learner": f"{plugin}:Mortal"}
    scenario.write_text(tomli_w.dumps(TABLES | {"continual": continual}))
    whole = fedkd.run(scenario, out=tmp_path / "whole").folder

    killed = tmp_path / "killed"
    words = ["run", scenario, "--out", killed, "--quiet"]
    assert Fork(words, tmp_path, environment={"LAST_STEP": str(step)}).wait() in (-signal.SIGKILL, 3)
    assert_in_the_middle(killed)
    fedkd.resume(killed)
    for name in ("metrics.jsonl", "accuracy_matrix.csv", "schedule.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name


def assert_in_the_middle(folder: Path) -> None:
    """Assert that a run has died in a round in which clients were in the middle of their tasks."""
    schedule = Schedule.from_json((folder / "schedule.json").read_text())
    died_in = 1 + max(json.loads(line)["round"] for line in (folder / "metrics.jsonl").open())
    there = schedule.participants(died_in)
    assert any(schedule.rounds_into_task(client, died_in) > 0 for client in there)
    assert any(schedule.place(client, died_in) > 0 for client in there)
