"""Whole runs with asynchronous rounds."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import fedkd
from fedkd.errors import Interrupted, UserError
from fedkd.federation import asynchronous
from fedkd.federation.manifest import Manifest
from fedkd.fusion.weights.fedbuff import FedBuff
from fedkd.fusion.weights.parameters import PARAMETERS
from fedkd.plan.load import parse_scenario
from fedkd.server.clients_at_work import JobsInFlight
from fedkd.tracking.events import RunObserver
from fedkd.tracking.recorder import read_metrics

pytestmark = pytest.mark.usefixtures("no_report")

SMALL: dict[str, Any] = {
    "name": "asynchronous",
    "seed": 5,
    "rounds": 3,
    "data": {
        "clients": 4,
        "partition": {"alpha": 1.0, "samples_per_client": 40},
        "transfer": {"size": 40},
        "test_size": 60,
    },
    "clients": [{"model": "mlp", "args": {"hidden": [12]}}],
    "training": {"lr": 0.01, "batch_size": 20},
    "fusion": {"strategy": "knfu", "beta": 3.0},
    "engine": {"kind": "inline"},
}
ALIKE = {"work": "steady", "spread": 0.0, "bandwidth": 2.0, "latency": 0.25}
"""Clients and networks without a difference."""


def metrics(folder: Path, **changes: Any) -> bytes:
    fedkd.run(parse_scenario(SMALL | changes), out=folder)
    return (folder / "metrics.jsonl").read_bytes()


def series(folder: Path, metric: str) -> list[float]:
    rows = read_metrics(folder)
    return [row["value"] for row in rows if row["metric"] == metric and row["client"] is None]


@pytest.mark.parametrize(
    "fusion",
    [
        SMALL["fusion"] | {"distribution_momentum": 0.5},
        {"strategy": "fedproto", "inference": "prototypes"},
        {"strategy": "fedbuff"},
        {"strategy": "local"},
    ],
    ids=lambda fusion: fusion["strategy"],
)
def test_equal_speeds_equal_synchronous_rounds(fusion, tmp_path):
    """To the last bit, time included: with K = N an upload is of age 0, and all are answered at once."""
    waiting = metrics(tmp_path / "waiting", clock=ALIKE, fusion=fusion)
    assert metrics(tmp_path / "not", clock=ALIKE, fusion=fusion, asynchronous={"buffer": 4}) == waiting


def test_a_clock_adds_its_metrics_and_changes_no_other(tmp_path):
    without = metrics(tmp_path / "without").splitlines()
    with_clock = metrics(tmp_path / "with", clock={}).splitlines()
    assert [row for row in with_clock if b"virtual_seconds" not in row] == without
    assert len(with_clock) == len(without) + SMALL["rounds"]


def test_a_synchronous_round_includes_transfer_times(tmp_path):
    """Up: 40 × 10 logits; down from the second round: targets of that size; both float32, 1,600 bytes."""
    for evaluate_every, folder in ((1, tmp_path / "often"), (3, tmp_path / "seldom")):
        metrics(folder, clock=ALIKE, evaluate_every=evaluate_every)
        one_way = 1600 * 8 / 2e6
        expected = np.cumsum([1.5 + one_way, *[1.5 + 2 * one_way] * 2])
        assert_allclose(series(folder, "virtual_seconds"), expected, rtol=1e-12)


def test_held_out_samples_take_no_simulated_time(tmp_path):
    """Of 32 own samples 13 are kept apart, 19 are a batch of 20; 40 labels are two more."""
    clock = {"work": "steps", "spread": 0.0}
    fusion = {"strategy": "scarlet", "samples_per_round": 40}
    metrics(tmp_path / "run", clock=clock, fusion=fusion, training=SMALL["training"] | {"held_out": 0.4})
    assert series(tmp_path / "run", "virtual_seconds") == [1.0, 1.0 + 3.0, 1.0 + 2 * 3.0]


class StopAtFusion(RunObserver):
    """Stops a run after its fifth round, with jobs under way: of trainings it may have several, or none."""

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        if (round, phase) == (5, "fuse"):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_resumed_clock_keeps_downloads_of_clients(tmp_path):
    """After the fifth round's evaluation all have guidance that counts for the sixth's time."""
    scenario = parse_scenario(SMALL | {"rounds": 6, "evaluate_every": 5, "clock": ALIKE})
    whole = fedkd.run(scenario, out=tmp_path / "whole").folder
    with pytest.raises(Interrupted):
        fedkd.run(scenario, out=tmp_path / "stopped", observers=[StopAtFusion()])
    saved = Manifest(tmp_path / "stopped" / "checkpoints" / "round-00005")
    assert saved.server()["clock/handed"].tolist() == [[client, 1600, 2] for client in range(4)]
    fedkd.resume(tmp_path / "stopped")
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"fusion": {"strategy": "fedbuff"}, "asynchronous": {"buffer": 3}, "clock": {"spread": 2.0}},
        {"asynchronous": {"buffer": 1, "concurrency": 3}, "evaluate_every": 2},
        {"fusion": {"strategy": "experts"}, "asynchronous": {"buffer": 2}},
    ],
    ids=["weights", "personal", "shared"],
)
def test_a_stopped_run_resumes_with_its_jobs_in_flight(changes, tmp_path):
    scenario = parse_scenario(SMALL | {"rounds": 9, "checkpoint_every": 2} | changes)
    whole = fedkd.run(scenario, out=tmp_path / "whole").folder
    with pytest.raises(Interrupted):
        fedkd.run(scenario, out=tmp_path / "stopped", observers=[StopAtFusion()])
    assert Manifest(tmp_path / "stopped" / "checkpoints" / "round-00005").server()["flights/jobs"].size
    fedkd.resume(tmp_path / "stopped")
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_evaluation_frequency_changes_no_result(tmp_path):
    for fusion in (SMALL["fusion"], {"strategy": "fedbuff"}):
        folder = tmp_path / fusion["strategy"]
        changes = {"fusion": fusion, "rounds": 6, "asynchronous": {"buffer": 2}}
        often = metrics(folder.with_suffix(".often"), **changes).splitlines()
        seldom = metrics(folder.with_suffix(".seldom"), **changes, evaluate_every=3).splitlines()
        assert len(seldom) < len(often) and set(seldom) <= set(often)


def test_an_extended_run_equals_a_longer_one(tmp_path):
    """Though its last round was evaluated because it was the last."""
    changes = {"asynchronous": {"buffer": 2}, "evaluate_every": 3}
    whole = metrics(tmp_path / "whole", **changes, rounds=6)
    metrics(tmp_path / "longer", **changes, rounds=4)
    fedkd.resume(tmp_path / "longer", rounds=6)
    assert (tmp_path / "longer" / "metrics.jsonl").read_bytes() == whole


class Fusions:
    """What FedBuff was handed, call after call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Any] = []
        self.models: list[np.ndarray] = []
        fuse = FedBuff.fuse

        def noted(strategy, knowledge, memory):
            guidance = fuse(strategy, knowledge, memory)
            self.calls.append(knowledge)
            if not knowledge.awaited:
                flat = [guidance.shared[name].ravel() for name in sorted(guidance.shared)]
                self.models.append(np.concatenate(flat))
            return guidance

        monkeypatch.setattr(FedBuff, "fuse", noted)

    @property
    def rounds(self) -> list[list[Any]]:
        found: list[list[Any]] = [[]]
        for knowledge in self.calls:
            found[-1].append(knowledge)
            if not knowledge.awaited:
                found.append([])
        return found[:-1]


@pytest.mark.parametrize("buffer", [1, 5])
def test_each_version_has_all_other_clients_in_flight(buffer, tmp_path, monkeypatch):
    """N − 1 of them, each a version older: the mean age is (N − 1)/K, but for what is still under way."""
    fusions, rounds, known = Fusions(monkeypatch), 20 // buffer, []
    monkeypatch.setattr(
        asynchronous, "JobsInFlight", lambda *given: known.append(JobsInFlight(*given)) or known[0]
    )
    metrics(
        tmp_path / "run",
        rounds=rounds,
        data=SMALL["data"] | {"clients": 6, "partition": {"scheme": "iid", "samples_per_client": 20}},
        evaluate_clients=1,
        evaluate_every=1000,
        checkpoint_every=1000,
        fusion={"strategy": "fedbuff"},
        clock={"spread": 2.0},
        asynchronous={"buffer": buffer},
    )
    ages = np.concatenate([knowledge.age for knowledge in fusions.calls])
    assert len(ages) == rounds * buffer and len(fusions.rounds) == rounds
    under_way = [rounds - job.began + 1 for job in known[0].jobs.values()]
    assert len(under_way) == 5 and ages.sum() + sum(under_way) == 5 * rounds
    if buffer == 5:  # some clients are fast enough to come twice in a round
        assert any(len(calls) > 1 for calls in fusions.rounds)
        assert all(sum(len(k.clients) for k in calls) == buffer for calls in fusions.rounds)


def test_every_server_step_is_weighted_by_staleness(tmp_path, monkeypatch):
    """x_V = x_0 + η_g Σ_v (1/K) Σ_i (1 + τ_i)^−a Δ_i, by a sum of its own."""
    fusions = Fusions(monkeypatch)
    metrics(
        tmp_path / "run",
        rounds=12,
        fusion={"strategy": "fedbuff", "server_lr": 0.7},
        clock={"spread": 2.0},
        asynchronous={"buffer": 3, "staleness": 0.5},
    )
    moved = np.zeros(fusions.models[0].shape)
    for calls in fusions.rounds[1:]:
        for knowledge in calls:
            for age, step in zip(knowledge.age, knowledge.payload[PARAMETERS], strict=True):
                moved += 0.7 / 3 / np.sqrt(1.0 + age) * step
    assert {int(age) for knowledge in fusions.calls for age in knowledge.age} > {0, 1}
    assert_allclose(fusions.models[-1] - fusions.models[0], moved, atol=1e-5)
    assert np.abs(moved).max() > 0.01


def test_working_clients_keep_the_state_of_their_last_answer(tmp_path):
    """With K = 1 one client's figures change a round, in the order of what the clock says."""
    metrics(tmp_path / "run", rounds=8, asynchronous={"buffer": 1})
    rows = read_metrics(tmp_path / "run")
    losses = {
        (row["round"], row["client"]): row["value"]
        for row in rows
        if (row["metric"], row["split"]) == ("loss", "global")
    }
    for round in range(2, 9):
        changed = [c for c in range(4) if losses[round, c] != losses[round - 1, c]]
        assert len(changed) == 1
    assert series(tmp_path / "run", "guided_clients") == [1] * 8
    times = series(tmp_path / "run", "virtual_seconds")
    assert times == sorted(times) and len(set(times)) == 8


def test_hyperparameter_choices_of_replying_clients_are_recorded(tmp_path):
    fusion = SMALL["fusion"] | {"logit_adjustment": "auto"}
    metrics(tmp_path / "run", fusion=fusion, asynchronous={"buffer": 2})
    chosen = [row for row in read_metrics(tmp_path / "run") if row["metric"] == "logit_adjustment"]
    for round in (1, 2, 3):
        assert sum(row["round"] == round and row["client"] is not None for row in chosen) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"asynchronous": {"buffer": 5}}, "asynchronous.buffer: must be ≤ 4, the number of clients"),
        (
            {"asynchronous": {"buffer": 3, "concurrency": 2}},
            "asynchronous.buffer: must be ≤ 2, the number of clients",
        ),
        ({"asynchronous": {"concurrency": 5}}, "asynchronous.concurrency: must be ≤ data.clients (4), got 5"),
        ({"clients_per_round": 2}, "clients_per_round: not allowed in an asynchronous run"),
        ({"end_with": "training"}, "end_with: not allowed in an asynchronous run"),
        ({"faults": {"dropout": 0.1}}, "faults.dropout: not allowed in an asynchronous run"),
        ({"faults": {"on_client_error": "skip"}}, "faults.on_client_error: not allowed"),
        ({"population": {"late": 0.5}}, "population: not allowed in an asynchronous run"),
        (
            {"measure": {"transferability": {}}},
            "measure.transferability: not allowed in an asynchronous run",
        ),
        ({"continual": {}}, "continual: not allowed in an asynchronous run"),
        ({"fusion": {"strategy": "knfu", "knowledge_cache": {}}}, "fusion.knowledge_cache: not allowed"),
        (
            {"fusion": {"strategy": "flwr:FedAvg"}},
            "'flwr:FedAvg' averages the uploads of all clients of a round",
        ),
        ({"fusion": {"strategy": "centralized"}}, "'centralized' trains on all clients' samples"),
        ({"fusion": {"strategy": "moon"}}, "'moon' exchanges weights that start from those of the round"),
        (
            {"fusion": {"strategy": "scarlet", "samples_per_round": 9}},
            "'scarlet' requests other transfer samples every round",
        ),
        (
            {"fusion": {"strategy": "scarlet", "samples_per_round": 40}},
            "'scarlet' requests other transfer samples every round",
        ),
        ({"fusion": {"strategy": "message"}}, "'message' has clients answer questions of the previous round"),
        (
            {"fusion": {"strategy": "fedkd_wu"}},
            "'fedkd_wu' sends how the shared model has changed since the round",
        ),
        ({"clock": {"seconds": 0.0}}, "clock.seconds: must be > 0"),
        ({"clock": {"targets": [0]}}, "clock.targets.0: must be ≥ 1"),
    ],
)
def test_settings_that_need_synchronous_rounds_are_refused(changes, message):
    with pytest.raises(UserError) as caught:
        parse_scenario(SMALL | {"asynchronous": {"buffer": 2}} | changes)
    assert message in str(caught.value)
