"""A run from Python: what it leaves in its folder, whom it tells, how it fails."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

import fedkd
from fedkd.errors import Interrupted, RunFailed, TrainingDiverged, UserError
from fedkd.federation import measurements
from fedkd.federation.checkpoint import CheckpointStore
from fedkd.plan.load import load_plan, load_scenario
from fedkd.scenario.schema import Scenario
from fedkd.tracking.events import RoundReport, RunObserver, RunReport
from fedkd.tracking.recorder import read_timings

pytestmark = pytest.mark.usefixtures("no_report")

PLUGIN = """
import os

import torch


class Fragile(torch.nn.Module):
    def __init__(self, shape, classes, way):
        super().__init__()
        self.head = torch.nn.Linear(64, classes)
        self.way, self.steps = way, 0

    def forward(self, x):
        self.steps += self.training
        if self.steps > 7 and self.training:  # four of training and three of distillation a round
            if self.way == "raise":
                raise OSError("the disk of this client is gone")
            if self.way == "exit":
                os._exit(1)
            if self.way == "diverge":
                return self.head(x.flatten(1)) * float("nan")
        return self.head(x.flatten(1))
"""


@pytest.fixture
def scenario_with(digits_scenario, tmp_path):
    """Return a function from changes of the tables to a scenario; `fragile.py` lies beside it."""

    def make(**changes: Any) -> Scenario:
        (tmp_path / "fragile.py").write_text(PLUGIN)
        path = tmp_path / "scenario.toml"
        path.write_text(tomli_w.dumps(digits_scenario | changes))
        return load_scenario(path)

    return make


def fragile(way: str) -> list[dict]:
    """Return a mix in which one client of four fails in the way named, in round 2."""
    return [{"model": "mlp", "share": 3}, {"model": "fragile:Fragile", "args": {"way": way}}]


def victim(scenario: Scenario) -> int:
    from fedkd.models.client_mix import client_models

    (index,) = [n for n, group in enumerate(client_models(scenario)) if group.model != "mlp"]
    return index


class Diary(RunObserver):
    def __init__(self) -> None:
        self.events: list[tuple] = []
        self.reports: list[RoundReport] = []

    def run_started(self, scenario: Scenario, folder: Path, resumed_from: int) -> None:
        self.events.append(("started", resumed_from))

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        self.events.append(("phase", round, phase, done, total))

    def round_finished(self, report: RoundReport) -> None:
        self.reports.append(report)
        self.events.append(("round", report.round))

    def run_finished(self, report: RunReport) -> None:
        self.events.append(("finished", report.folder))

    def closed(self) -> None:
        self.events.append(("closed",))


# The run folder ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    tables = {
        "name": "digits-test",
        "seed": 7,
        "rounds": 3,
        "clients_per_round": 3,
        "evaluate_every": 2,
        "data": {
            "clients": 4,
            "partition": {"alpha": 1.0, "samples_per_client": 100},
            "transfer": {"size": 60},
        },
        "clients": [{"model": "mlp"}],
        "training": {"lr": 0.01, "batch_size": 20},
        "fusion": {"strategy": "knfu"},
        "engine": {"kind": "inline"},
    }
    (folder / "scenario.toml").write_text(tomli_w.dumps(tables))
    return fedkd.run(folder / "scenario.toml", out=folder / "run")


def test_the_run_folder_has_all_documented_files(finished):
    names = {path.name for path in finished.folder.iterdir() if not path.name.startswith(".")}
    assert names - {"warnings.jsonl"} == {
        "scenario.toml",
        "schedule.json",
        "clients.json",
        "metrics.jsonl",
        "timings.jsonl",
        "summary.json",
        "progress.json",
        "run.log",
        "checkpoints",
        "fusion",
    }
    assert load_scenario(finished.folder / "scenario.toml").rounds == 3
    assert CheckpointStore(finished.folder).latest().round == 3
    told = json.loads((finished.folder / "clients.json").read_text())
    assert told["models"] == ["mlp"] * 4 and told["tasks"][0]["classes"] == [str(n) for n in range(10)]
    assert [sum(counts) for counts in told["tasks"][0]["train"]] == [80] * 4


def test_metrics_have_the_documented_keys_in_order(finished):
    lines = (finished.folder / "metrics.jsonl").read_text().splitlines()
    for line in lines:
        assert list(json.loads(line)) == ["round", "client", "task", "split", "metric", "value"]
    assert [json.loads(line) for line in lines] == finished.metrics()


GUIDED = ("fusion_gain", "agreement", "guidance_kl", "positive_flips", "negative_flips")


def test_metrics_name_every_client_and_the_mean(finished):
    rows = finished.metrics()
    groups: dict[tuple, dict] = {}
    for row in rows:
        key = (row["round"], row["split"], row["metric"])
        assert row["client"] not in groups.setdefault(key, {}), "one value a client"
        groups[key][row["client"]] = row["value"]
    schedule = load_plan(finished.folder / "scenario.toml").schedule
    drawn = {round: set(schedule.participants(round)) for round in (1, 2, 3)}
    assert all(len(clients) == 3 for clients in drawn.values())
    for (round, split, metric), values in groups.items():
        if metric == "guided_clients":
            assert values == {None: 3}
            continue
        others = [value for client, value in values.items() if client is not None]
        assert values[None] == pytest.approx(np.mean(others), abs=1e-12)
        wanted = drawn[round] if split == "train" or metric in GUIDED else {0, 1, 2, 3}
        assert set(values) == wanted | {None}, (round, split, metric)
    measured = {key for key in groups if key[1] != "train" and not key[2].endswith("_flips")}
    assert measured == {
        (round, split, metric)
        for round in (2, 3)
        for split in ("local", "global")
        for metric in ("accuracy_before_fusion", "accuracy", "loss", "fusion_gain")
    }
    assert {key for key in groups if key[1] == "train" and key[2] not in (*GUIDED, "guided_clients")} == {
        (round, "train", metric) for round in (1, 2, 3) for metric in ("loss", "effective_neighbours")
    }


def test_the_summary_keeps_its_schema(finished):
    summary = json.loads((finished.folder / "summary.json").read_text())
    assert summary == finished.summary
    assert set(summary) == {
        "name",
        "seed",
        "status",
        "rounds",
        "final",
        "continual",
        "at_chance",
        "seconds",
        "versions",
    }
    assert (summary["name"], summary["seed"], summary["status"]) == ("digits-test", 7, "done")
    assert (summary["rounds"], summary["continual"]) == (3, None)
    accuracies = {
        f"{name}_{split}" for name in ("accuracy", "accuracy_before_fusion") for split in ("local", "global")
    }
    traffic = {"bytes_up", "bytes_down", "evaluation_bytes"}
    assert set(summary["final"]) == accuracies | traffic | {"by_architecture"}
    assert set(summary["final"]["by_architecture"]["mlp"]) == accuracies | {"clients"}
    for split in ("local", "global"):
        values = [
            row["value"]
            for row in finished.metrics()
            if (row["round"], row["split"], row["metric"]) == (3, split, "accuracy")
            and row["client"] is not None
        ]
        mean = sum(values) / 4
        assert summary["final"][f"accuracy_{split}"] == pytest.approx(
            {
                "mean": mean,
                "std": math.sqrt(sum((value - mean) ** 2 for value in values) / 4),
                "min": min(values),
                "max": max(values),
                "n": 4,
                "worst_10": min(values),
                "jain": sum(values) ** 2 / (4 * sum(value**2 for value in values)),
                "gini": sum(abs(a - b) for a in values for b in values) / (32 * mean),
            }
        )
    # Logits [60, 10] in float32 from three clients a round; guidance of rounds 2 and 3 at their evaluation,
    # that of round 1 with whichever message comes first.
    one = 60 * 10 * 4
    assert summary["final"]["bytes_up"] == 3 * 3 * one
    assert summary["final"]["bytes_down"] == 3 * 3 * one
    assert {"fedkd", "python", "torch", "numpy", "flwr"} <= set(summary["versions"])


def test_timings_record_seconds_and_bytes_of_every_phase(finished):
    rows = read_timings(finished.folder)
    phases = [(row["round"], row["phase"]) for row in rows]
    assert phases == [
        (round, phase)
        for round, evaluates in ((1, False), (2, True), (3, True))
        for phase in ("train", "fuse", *(["evaluate"] if evaluates else []), "save")
    ]
    assert all(row["seconds"] >= 0 for row in rows)
    assert sum(row.get("bytes_up", 0) for row in rows) == finished.summary["final"]["bytes_up"]
    assert sum(row.get("bytes_down", 0) for row in rows) == finished.summary["final"]["bytes_down"]


def test_effectiveness_weights_are_recorded_every_round(finished):
    files = sorted((finished.folder / "fusion").iterdir())
    assert [file.name for file in files] == [f"round-0000{n}.npz" for n in (1, 2, 3)]
    for file in files:
        with np.load(file, allow_pickle=False) as kept:
            clients, weights = kept["clients"], kept["weights"]
        assert (len(clients), weights.shape) == (3, (3, 3))
        assert sorted(set(clients.tolist())) == clients.tolist()
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-6)


# Corners of the scenario ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": {"strategy": "local"}},
        {"fusion": {"strategy": "fedmd"}, "clients_per_round": 1},
        {"evaluate_every": 9, "checkpoint_every": 9},
        {"fusion": {"strategy": "knfu", "upload_dtype": "float16"}},
        {"fusion": {"strategy": "knfu", "stale_decay": 0.5}, "clients_per_round": 1},
        {"fusion": {"strategy": "flwr:FedAvg"}, "clients_per_round": 1},
    ],
)
def test_a_scenario_runs_and_resumes(changes, scenario_with, tmp_path):
    scenario = scenario_with(**changes)
    result = fedkd.run(scenario, out=tmp_path / "run")
    final = result.summary["final"]
    assert 0 < final["accuracy_global"]["mean"] <= 1
    if scenario.fusion.strategy == "local":
        assert (final["bytes_up"], final["bytes_down"]) == (0, 0)
        assert not (tmp_path / "run" / "fusion").exists()
    if scenario.fusion.model_extra and scenario.fusion.upload_dtype == "float16":
        assert final["bytes_up"] == 2 * 4 * 60 * 10 * 2
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert fedkd.resume(tmp_path / "run").summary["final"] == final
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("strategy", ["knfu", "fedmd", "flwr:FedAvg"])
def test_a_federation_of_one_client_runs(strategy, digits_scenario, scenario_with, tmp_path):
    scenario = scenario_with(data=digits_scenario["data"] | {"clients": 1}, fusion={"strategy": strategy})
    result = fedkd.run(scenario, out=tmp_path / "run")
    assert {row["client"] for row in result.metrics()} == {0, None}


def test_a_client_with_few_test_samples_runs(digits_scenario, scenario_with, tmp_path):
    partition = {"scheme": "iid", "samples_per_client": 10, "min_samples": 2}
    data = digits_scenario["data"] | {"partition": partition, "test_fraction": 0.01}
    result = fedkd.run(scenario_with(data=data), out=tmp_path / "run")
    values = {
        row["value"]
        for row in result.metrics()
        if (row["split"], row["metric"]) == ("local", "accuracy") and row["client"] is not None
    }
    assert values <= {0.0, 1.0}, "one test sample each"


# Where it goes ----------------------------------------------------------------------------------------


def test_runs_are_numbered_without_a_named_folder(scenario_with, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenario = scenario_with(rounds=1, fusion={"strategy": "local"})
    folders = [fedkd.run(scenario).folder for _ in range(3)]
    names = ("digits-test-seed7", "digits-test-seed7-2", "digits-test-seed7-3")
    assert folders == [tmp_path / "runs" / name for name in names]


def test_a_folder_that_cannot_be_created_is_a_user_error(scenario_with, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write to .*file/run: Not a directory") as caught:
        fedkd.run(scenario_with(), out=tmp_path / "file" / "run")
    assert caught.value.key == "--out"


def test_a_scenario_that_cannot_start_leaves_no_folder(digits_scenario, scenario_with, tmp_path):
    data = digits_scenario["data"] | {"clients": 40, "partition": {"samples_per_client": 1000}}
    with pytest.raises(UserError):
        fedkd.run(scenario_with(data=data), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Who is told ------------------------------------------------------------------------------------------


def test_observers_are_called_in_order(scenario_with, tmp_path):
    diary = Diary()
    fedkd.run(scenario_with(), out=tmp_path / "run", observers=[diary])

    def counted(round: int, phase: str) -> list[tuple]:
        return [("phase", round, phase, done, 4) for done in range(5)]

    def one(round: int) -> list[tuple]:
        fused, finished = ("phase", round, "fuse", 0, 1), ("round", round)
        trained, evaluated, saved = (counted(round, phase) for phase in ("train", "evaluate", "save"))
        return [*trained, fused, *evaluated, finished, *saved]

    assert diary.events == [("started", 0), *one(1), *one(2), ("finished", tmp_path / "run"), ("closed",)]


def test_a_round_is_reported_with_its_recorded_means(scenario_with, tmp_path):
    diary = Diary()
    result = fedkd.run(scenario_with(evaluate_every=2), out=tmp_path / "run", observers=[diary])
    first, second = diary.reports
    assert (first.accuracy_local, first.accuracy_global, first.fusion_gain) == (None, None, None)
    means = {
        (row["split"], row["metric"]): row["value"]
        for row in result.metrics()
        if row["client"] is None and row["round"] == 2
    }
    assert second.accuracy_local == means["local", "accuracy"]
    assert second.accuracy_global == means["global", "accuracy"]
    assert second.fusion_gain == means["local", "fusion_gain"]
    assert second.train_loss == means["train", "loss"]
    assert second.effective_neighbours == means["train", "effective_neighbours"]
    assert first.bytes_up + second.bytes_up == result.summary["final"]["bytes_up"]


def test_a_failed_observer_is_dropped_and_the_run_continues(scenario_with, tmp_path):
    class Broken(RunObserver):
        def phase(self, round, phase, done, total):
            raise ValueError("I cannot watch this")

    diary = Diary()
    fedkd.run(scenario_with(), out=tmp_path / "run", observers=[Broken(), diary])
    assert diary.events[-1] == ("closed",)
    assert ("round", 2) in diary.events


def test_a_resumed_run_announces_itself_first(scenario_with, tmp_path):
    fedkd.run(scenario_with(), out=tmp_path / "run")
    diary = Diary()
    fedkd.resume(tmp_path / "run", observers=[diary])
    assert diary.events[0] == ("started", 2)


def test_wandb_offline_keeps_its_files_in_the_folder(scenario_with, tmp_path):
    pytest.importorskip("wandb")
    scenario = scenario_with(tracking={"wandb": {"mode": "offline"}}, fusion={"strategy": "local"})
    fedkd.run(scenario, out=tmp_path / "run")
    files = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    assert files[0].stat().st_size > 0


def test_a_broken_wandb_does_not_stop_the_run(scenario_with, tmp_path, monkeypatch):
    class Lines(RunObserver):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def message(self, text: str) -> None:
            self.lines.append(text)

    monkeypatch.setitem(sys.modules, "wandb", None)
    lines = Lines()
    scenario = scenario_with(tracking={"wandb": {"mode": "offline"}}, fusion={"strategy": "local"})
    result = fedkd.run(scenario, out=tmp_path / "run", observers=[lines])
    assert result.summary["status"] == "done"
    assert len([line for line in lines.lines if "wandb is switched off" in line]) == 1


# What it is given -------------------------------------------------------------------------------------


def test_run_accepts_tables_instead_of_a_file(digits_scenario, digits_toml, tmp_path):
    of_file = fedkd.run(digits_toml, out=tmp_path / "file")
    of_tables = fedkd.run(digits_scenario, out=tmp_path / "tables")
    for name in ("metrics.jsonl", "scenario.toml"):
        assert (of_tables.folder / name).read_bytes() == (of_file.folder / name).read_bytes()


@pytest.mark.parametrize(
    ("verb", "given", "told"),
    [
        (fedkd.run, {"round": 3}, "round: unknown key; did you mean 'rounds'"),
        (fedkd.run, {1: 2}, "keys should be strings"),
        (
            fedkd.run,
            3,
            "must be a scenario, its plan, .*or its tables as a mapping, got int",
        ),
        (fedkd.run, None, "got NoneType"),
        (fedkd.resume, {}, "the run folder must be a path, got "),
        (fedkd.bench, {}, "must be the path of a bench file, got dict"),
    ],
)
def test_other_arguments_raise_the_exported_error(verb, given, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(fedkd.UserError, match=told):
        verb(given)
    assert not any(tmp_path.iterdir())


# Failures ---------------------------------------------------------------------------------------------


def test_a_client_that_raises_is_named_with_its_round(scenario_with, tmp_path):
    scenario = scenario_with(clients=fragile("raise"))
    out = tmp_path / "run"
    with pytest.raises(RunFailed) as caught:
        fedkd.run(scenario, out=out)
    error = caught.value
    assert (error.client, error.round, error.exit_status) == (victim(scenario), 2, 3)
    assert str(error).startswith(f"client {victim(scenario)}, round 2: OSError: the disk of this client")
    assert f"traceback in {out / 'error.txt'}" in str(error)
    kept = (out / "error.txt").read_text()
    assert "Traceback (most recent call last)" in kept
    assert "fragile.py" in kept
    assert not (out / "summary.json").exists()
    assert CheckpointStore(out).latest().round == 1


@pytest.mark.alone
def test_a_dead_actor_is_reported_with_client_and_resume_command(scenario_with, tmp_path, ray_session):
    scenario = scenario_with(clients=fragile("exit"), engine={"kind": "ray", "actors": 1, "restarts": 0})
    out = tmp_path / "run"
    with pytest.raises(RunFailed) as caught:
        fedkd.run(scenario, out=out)
    assert (caught.value.client, caught.value.round) == (victim(scenario), 2)
    assert "its Ray actor died" in str(caught.value)
    assert f"fedkd resume {out}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_names_the_client(scenario_with, tmp_path):
    scenario = scenario_with(clients=fragile("diverge"))
    with pytest.raises(RunFailed, match=r"client \d, round 2: training loss became nan"):
        fedkd.run(scenario, out=tmp_path / "run")


def test_a_resumed_run_clears_its_earlier_error(scenario_with, tmp_path, monkeypatch):
    scenario = scenario_with()
    unbroken = fedkd.run(scenario, out=tmp_path / "unbroken")
    from fedkd.clients.client import Client

    train = Client.train

    def flaky(self, round, *args, **kwargs):
        if (self.index, round) == (2, 2):
            raise TrainingDiverged("a cosmic ray")
        return train(self, round, *args, **kwargs)

    monkeypatch.setattr(Client, "train", flaky)
    with pytest.raises(RunFailed, match="client 2, round 2: a cosmic ray"):
        fedkd.run(scenario, out=tmp_path / "run")
    assert (tmp_path / "run" / "error.txt").exists()
    monkeypatch.setattr(Client, "train", train)
    fedkd.resume(tmp_path / "run")
    assert not (tmp_path / "run" / "error.txt").exists()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (
        unbroken.folder / "metrics.jsonl"
    ).read_bytes()


def test_a_user_error_found_by_a_client_stays_a_user_error(scenario_with, tmp_path, monkeypatch):
    from fedkd.clients.client import Client

    def refuse(self, *args, **kwargs):
        raise UserError("must be smaller", key="training.batch_size")

    monkeypatch.setattr(Client, "train", refuse)
    with pytest.raises(UserError) as caught:
        fedkd.run(scenario_with(), out=tmp_path / "run")
    assert (caught.value.key, caught.value.message) == ("training.batch_size", "must be smaller")
    assert caught.value.exit_status == 2


def test_a_full_disk_is_reported_with_the_folder(scenario_with, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(measurements.np, "savez", full)
    with pytest.raises(RunFailed, match=r"cannot write to .*/run: No space left on device"):
        fedkd.run(scenario_with(), out=tmp_path / "run")


def test_a_second_ctrl_c_stops_at_once(scenario_with, tmp_path):
    class Impatient(RunObserver):
        def phase(self, round: int, phase: str, done: int, total: int) -> None:
            if (round, phase, done) == (2, "train", 1):
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    scenario = scenario_with(rounds=3)
    unbroken = fedkd.run(scenario, out=tmp_path / "unbroken")
    out = tmp_path / "run"
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=rf"stopped at once.*fedkd resume {out}"):
        fedkd.run(scenario, out=out, observers=[Impatient()])
    assert signal.getsignal(signal.SIGINT) is handler
    assert CheckpointStore(out).latest().round == 1
    fedkd.resume(out)
    assert (out / "metrics.jsonl").read_bytes() == (unbroken.folder / "metrics.jsonl").read_bytes()
