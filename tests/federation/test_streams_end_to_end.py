"""Federations that learn a stream of tasks, whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from stopping import StopInRound

import fedkd
from fedkd.continual.masks.supsup import SupSup
from fedkd.errors import Interrupted, UserError
from fedkd.plan.load import parse_scenario
from fedkd.tracking.recorder import read_metrics

pytestmark = pytest.mark.usefixtures("no_report")

OWN = {"order": "shuffled", "pace": "uniform", "pace_range": [1, 2]}
"""Orders and clocks of the clients' own."""


@pytest.fixture
def mixed(digits_scenario) -> dict:
    """Two architectures, one with normalisation statistics, partial participation, knowledge fused."""
    tables = digits_scenario | {
        "clients_per_round": 2,
        "clients": [{"model": "mlp", "args": {"hidden": [24], "dropout": 0.2}}, {"model": "resnet8"}],
        "continual": {
            "learner": "gpm",
            "rounds_per_task": 2,
            "evaluate_epochs": True,
            "tasks": {"kind": "split", "count": 3, "classes_per_task": 3},
        },
    }
    del tables["rounds"]
    data = {"clients": 3, "partition": {"scheme": "iid", "samples_per_client": 60}, "test_size": 60}
    return tables | {"data": digits_scenario["data"] | data | {"transfer": {"size": 24}}}


@pytest.fixture
def alone(mixed) -> dict:
    """One client that nobody teaches."""
    data = mixed["data"] | {"clients": 1, "transfer": {"size": 0}}
    del mixed["clients_per_round"]
    return mixed | {
        "data": data,
        "clients": [{"model": "mlp", "args": {"hidden": [24]}}],
        "training": mixed["training"] | {"local_epochs": 10},
        "fusion": {"strategy": "local"},
        "continual": mixed["continual"] | {"learner": "naive", "rounds_per_task": 1},
    }


def run(tables: dict, out: Path, **changes) -> Path:
    return fedkd.run(parse_scenario(tables | changes), out=out).folder


def rows(folder: Path, **wanted) -> list[dict]:
    return [row for row in read_metrics(folder) if wanted.items() <= row.items()]


@pytest.mark.parametrize(
    ("learner", "order"),
    [
        *[("gpm", {}), ("ewc", OWN), ("exssnet", OWN), ("cuber", OWN), ("er", {}), ("si", {})],
        *[("der++", {}), ("icarl", OWN)],
    ],
)
def test_a_stream_stopped_after_any_round_resumes_exactly(learner, order, mixed, tmp_path):
    tasks = mixed["continual"]["tasks"] | {"count": 2} | order
    mixed["continual"] = mixed["continual"] | {"learner": learner, "tasks": tasks}
    if order:  # which has a pace of its own
        del mixed["continual"]["rounds_per_task"]
    mixed["clients"] = [{"model": "resnet8"}, {"model": "lenet"}, {"model": "mlp"}]
    # Some clients are tested on tasks, and their tasks end, without their ever having trained.
    mixed |= {"evaluate_every": 2, "clients_per_round": 1}
    unbroken = run(mixed, tmp_path / "unbroken")

    folder = tmp_path / "broken"
    with pytest.raises(Interrupted):
        fedkd.run(parse_scenario(mixed), out=folder, observers=[StopInRound()])
    for _ in range(2):
        with pytest.raises(Interrupted):
            fedkd.resume(folder, observers=[StopInRound()])
    fedkd.resume(folder)
    for file in ("metrics.jsonl", "epochs.jsonl"):
        assert (unbroken / file).read_bytes() == (folder / file).read_bytes(), file


@pytest.mark.parametrize("learner", ["icarl", "gdumb", "cumulative"])
def test_buffered_samples_are_trained_on(learner, alone, tmp_path):
    """Where all classes compete, old samples are what keeps old ones."""
    stream = alone["continual"] | {"learner": learner, "head": "class", "rounds_per_task": 1}
    folder = run(alone | {"training": alone["training"] | {"lr": 0.01}}, tmp_path / "run", continual=stream)
    first = rows(folder, metric="accuracy_class_incremental", split="global", client=0, task=0, round=3)
    last = rows(folder, metric="accuracy", split="global", client=0, round=3)
    assert first[0]["value"] > 0.5 and last[0]["value"] > 0.6


def test_evaluation_frequency_never_changes_learning(mixed, tmp_path):
    often = run(mixed, tmp_path / "often")
    rarely = run(mixed, tmp_path / "rarely", evaluate_every=5)
    last = {"round": 6, "split": "global"}
    kept = [row for row in rows(often, **last) if "forgetting" not in row["metric"]]
    assert kept and kept == [row for row in rows(rarely, **last) if "forgetting" not in row["metric"]]
    # The last round of every task is always evaluated.
    assert {row["round"] for row in rows(rarely, metric="accuracy")} == {2, 4, 5, 6}


def test_tasks_are_evaluated_at_the_documented_rounds(alone, tmp_path):
    folder = run(alone, tmp_path / "run")
    for protocol in ("task_incremental", "class_incremental"):
        for split in ("local", "global"):
            found = rows(folder, metric=f"accuracy_{protocol}", split=split, client=0)
            measured = {(row["round"], row["task"]) for row in found}
            untrained = {(0, task) for task in range(3)}
            met_and_next = {(1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)}
            assert measured == untrained | met_and_next
    accuracy = rows(folder, metric="accuracy", split="global", client=0, round=2)[0]["value"]
    tasks = rows(folder, metric="accuracy_task_incremental", split="global", client=0, round=2)
    assert accuracy == pytest.approx(np.mean([row["value"] for row in tasks[:2]]), abs=1e-12)
    assert not rows(folder, metric="accuracy", round=0)
    curve = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
    assert [(row["round"], row["task"], row["epoch"], row["split"]) for row in curve[:20]] == [
        (1, 0, epoch, split) for split in ("local", "global") for epoch in range(1, 11)
    ]
    last_of_task = rows(folder, metric="accuracy_task_incremental", split="global", client=0, round=1)[0]
    assert curve[19]["value"] == last_of_task["value"]


def test_class_incremental_accuracy_is_below_task_incremental(alone, tmp_path):
    folder = run(alone, tmp_path / "run")
    for row in rows(folder, metric="accuracy_class_incremental", client=0):
        same = {name: row[name] for name in ("round", "task", "split")}
        given = rows(folder, metric="accuracy_task_incremental", client=0, **same)[0]
        assert given["value"] >= row["value"]
    # A naive learner comes to answer with the last task's classes whatever it is shown.
    first = rows(folder, metric="accuracy_class_incremental", split="global", client=0, task=0)
    values = [row["value"] for row in first]
    assert values[1] > values[2] > values[3], values


def test_the_task_inference_rate_is_recorded(alone, tmp_path, monkeypatch):
    def every_third_of_the_second(self, context, slots, x):
        return (torch.arange(len(x)) % 3 == 2).long().clamp(max=len(slots) - 1)

    monkeypatch.setattr(SupSup, "infer", every_third_of_the_second)
    tasks = {"kind": "rotated", "count": 2}
    alone["data"] = alone["data"] | {"test_fraction": 0.0}
    folder = run(alone, tmp_path / "run", continual={"learner": "supsup", "tasks": tasks})
    found = rows(folder, metric="task_inference_rate", client=0)
    # 60 common test samples of each task; with one mask alone there is no choice.
    assert {(r["round"], r["task"], r["split"]): r["value"] for r in found} == {
        (1, 0, "global"): 1.0,
        (2, 0, "global"): pytest.approx(40 / 60),
        (2, 1, "global"): pytest.approx(20 / 60),
    }
    summary = json.loads((folder / "summary.json").read_text())["continual"]
    assert summary["task_inference_rate"]["mean"] == pytest.approx(0.5)
    assert summary["task_inference_rate_domain_incremental"] == summary["task_inference_rate"]
    assert summary.get("task_inference_rate_local") is None
    assert "task_inference_rate_task_incremental" not in summary


def test_learners_without_inference_record_no_inference_rate(alone, tmp_path):
    folder = run(alone, tmp_path / "run")
    assert not rows(folder, metric="task_inference_rate")
    assert "task_inference_rate" not in json.loads((folder / "summary.json").read_text())["continual"]


def test_the_class_incremental_test_can_be_disabled(alone, tmp_path):
    stream = {"learner": "supsup", "evaluate_without_task": False, "tasks": {"kind": "rotated", "count": 2}}
    folder = run(alone, tmp_path / "run", continual=stream)
    assert not rows(folder, metric="accuracy_domain_incremental")
    assert not rows(folder, metric="task_inference_rate")
    tasks = rows(folder, metric="accuracy_task_incremental", split="global", client=0, round=2)
    accuracy = rows(folder, metric="accuracy", split="global", client=0, round=2)[0]["value"]
    assert accuracy == pytest.approx(np.mean([row["value"] for row in tasks]), abs=1e-12)


def test_drops_on_old_tasks_are_attributed_to_training_or_fusion(mixed, tmp_path):
    mixed["continual"] = mixed["continual"] | {"learner": "naive"}
    folder = run(mixed, tmp_path / "run", clients_per_round=3)
    for row in rows(folder, metric="accuracy_task_incremental", split="global", round=4, task=0):
        if row["client"] is None:
            continue
        same = {"split": "global", "task": 0, "client": row["client"]}
        before = rows(folder, metric="accuracy_task_incremental", round=3, **same)[0]["value"]
        by_training = rows(folder, metric="temporal_forgetting", round=4, **same)[0]["value"]
        by_guidance = rows(folder, metric="spatial_forgetting", round=4, **same)[0]["value"]
        assert before - by_training - by_guidance == pytest.approx(row["value"], abs=1e-12)


def test_a_stream_of_one_task_equals_plain_training(alone, digits_scenario, tmp_path):
    """A stream of one task of all classes gives what a scenario without a stream gives."""
    stream = alone["continual"] | {"tasks": {"kind": "permuted", "count": 1}, "evaluate_epochs": False}
    streamed = run(alone, tmp_path / "stream", continual=stream)
    plain = {name: table for name, table in alone.items() if name != "continual"} | {"rounds": 1}
    unstreamed = run(plain, tmp_path / "plain")
    for metric in ("accuracy", "loss"):
        ours = rows(streamed, metric=metric, round=1)
        assert {row["task"] for row in ours if row["client"] is not None} == {0}
        ours = [row | {"task": None} for row in ours]
        assert ours == rows(unstreamed, metric=metric, round=1) and ours


@pytest.mark.parametrize(
    "strategy",
    [
        *("flwr:FedAvg", "scaffold", "fedmd", "fedproto", "fd", "dsfl", "ktpfl", "feddf", "fedet"),
        *("moon", "fedntd", "lg_fedavg", "fedala", "fedhkd", "fedhkt", "mhat"),
    ],
)
def test_plug_in_learners_run_in_any_federation(strategy, mixed, tmp_path):
    tables = mixed | {
        "clients": [{"model": "mlp", "args": {"hidden": [24]}}],
        "fusion": {"strategy": strategy},
    }
    if strategy in ("fedet", "fedhkt", "mhat"):
        tables["fusion"] |= {"server_model": "mlp", "server_epochs": 40}
    if strategy == "scaffold":
        tables["training"] = mixed["training"] | {"optimizer": "sgd", "lr": 0.3}
    folder = run(tables, tmp_path / "run")
    final = rows(folder, metric="accuracy_task_incremental", split="global", client=None, round=6)
    assert len(final) == 3 and np.mean([row["value"] for row in final]) > 0.5  # a third by chance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"clients": [{"model": "random-forest"}], "training": {}},
            "continual.learner: 'gpm' changes gradients, but model 'random-forest' .* is not a network",
        ),
        (
            {"faults": {"poisoned": 0.3, "poison": "imitation"}},
            "faults.poison: 'imitation' is not allowed in a stream",
        ),
    ],
)
def test_impossible_settings_are_refused(changes, message, mixed, tmp_path):
    with pytest.raises(UserError, match=message):
        run(mixed, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_averaging_refuses_learners_with_task_weights(mixed, tmp_path):
    mixed["continual"] = mixed["continual"] | {"learner": "packnet"}
    tables = mixed | {"clients": [{"model": "mlp"}], "fusion": {"strategy": "flwr:FedAvg"}}
    with pytest.raises(UserError, match="averages weights, and 'packnet' gives each task its own weights"):
        run(tables, tmp_path / "run")
