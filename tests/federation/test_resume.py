"""A run stopped at any time resumes to the same result."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from processes import Fork
from stopping import StopInRound

import fedkd
from fedkd.cli.main import main
from fedkd.errors import Interrupted, UserError
from fedkd.plan.load import load_scenario

pytestmark = pytest.mark.usefixtures("no_report")

TABLES: dict[str, Any] = {
    "name": "resumed",
    "seed": 7,
    "rounds": 8,
    "clients_per_round": 3,
    "data": {
        "clients": 4,
        "partition": {"alpha": 1.0, "samples_per_client": 100},
        "transfer": {"size": 60},
        "test_size": 100,
    },
    "clients": [{"model": "mlp"}, {"model": "lenet"}],
    "training": {"lr": 0.01, "batch_size": 20},
    "fusion": {
        "strategy": "knfu",
        "beta": 3.0,
        "stale_decay": 0.7,
        "distribution_momentum": 0.5,
    },
    "engine": {"kind": "inline"},
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "scenario.toml"
    path.write_text(tomli_w.dumps(TABLES | changes))
    return path


def metrics_of(folder: Path) -> bytes:
    return (folder / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """The folder of a run that nobody stopped; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("unbroken")
    return fedkd.run(write(folder), out=folder / "run").folder


@pytest.fixture
def finished(unbroken, tmp_path) -> Path:
    """A copy of the run that nobody stopped."""
    return Path(shutil.copytree(unbroken, tmp_path / "finished"))


def killed(words: list[object], out: Path, rounds_done: int, delay: float) -> None:
    """Start a run and kill it `delay` seconds after a round's metrics appeared, or after its folder did."""
    process = Fork(["run", *words, "--out", out, "--quiet"], out.parent)
    metrics = out / "metrics.jsonl"
    marker = f'"round": {rounds_done},'.encode()
    deadline = time.monotonic() + 120

    def reached() -> bool:
        if rounds_done:
            return metrics.exists() and marker in metrics.read_bytes()
        return (out / "scenario.toml").exists()

    while not reached():
        assert time.monotonic() < deadline and process.running, process.stderr
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("attempt", range(3))
def test_a_run_killed_at_a_random_time_resumes_exactly(attempt, unbroken, tmp_path):
    draw = random.Random(time.time_ns())
    rounds_done, delay = draw.randrange(0, 7), draw.uniform(0.0, 0.3)
    print(f"killed {delay:.4f} s after round {rounds_done}")
    killed([write(tmp_path)], tmp_path / "killed", rounds_done, delay)
    fedkd.resume(tmp_path / "killed")
    assert metrics_of(tmp_path / "killed") == metrics_of(unbroken)


@pytest.mark.alone
def test_a_run_killed_on_ray_resumes_exactly(unbroken, tmp_path, ray_session):
    """The process that is killed and the one that goes on are two drivers of one cluster."""
    import ray

    address = ray.get_runtime_context().gcs_address
    engine = {"kind": "ray", "actors": 1, "address": address}
    killed([write(tmp_path, engine=engine)], tmp_path / "killed", 3, 0.05)
    fedkd.resume(tmp_path / "killed")
    assert metrics_of(tmp_path / "killed") == metrics_of(unbroken)


@pytest.mark.parametrize(("number", "checkpoint_every"), [(signal.SIGINT, 5), (signal.SIGTERM, 1)])
def test_a_signal_saves_the_round_and_names_the_resume_command(number, checkpoint_every, unbroken, tmp_path):
    scenario = load_scenario(write(tmp_path, checkpoint_every=checkpoint_every))
    stopped = tmp_path / "stopped"
    with pytest.raises(Interrupted, match=rf"after round 3 of 8.*fedkd resume {stopped}") as caught:
        fedkd.run(scenario, out=stopped, observers=[StopInRound(3, number)])
    assert caught.value.exit_status == 130
    fedkd.resume(stopped)
    assert metrics_of(stopped) == metrics_of(unbroken)


@pytest.mark.parametrize(
    "fusion",
    [{"strategy": "flwr:FedAdam", "eta": 0.01}, {"strategy": "flwr:FedAvgM", "server_momentum": 0.9}],
)
def test_flower_strategies_resume_with_their_optimiser_moments(fusion, tmp_path):
    changes = {"fusion": fusion, "clients": [{"model": "mlp"}], "checkpoint_every": 2, "rounds": 6}
    scenario = load_scenario(write(tmp_path, **changes))
    whole = fedkd.run(scenario, out=tmp_path / "whole").folder
    with pytest.raises(Interrupted):
        fedkd.run(scenario, out=tmp_path / "stopped", observers=[StopInRound(4)])
    fedkd.resume(tmp_path / "stopped")
    assert metrics_of(tmp_path / "stopped") == metrics_of(whole)


def test_clients_stored_on_disk_resume(unbroken, tmp_path):
    """One of four is in memory at a time, before and after; those that are restored go to the disk."""
    engine = {"kind": "inline", "live_clients": 1}
    path = write(tmp_path, engine=engine, checkpoint_every=2)
    with pytest.raises(Interrupted):
        fedkd.run(path, out=tmp_path / "stopped", observers=[StopInRound(5)])
    fedkd.resume(tmp_path / "stopped")
    assert metrics_of(tmp_path / "stopped") == metrics_of(unbroken)


def test_a_damaged_checkpoint_falls_back_to_the_previous_one(finished, unbroken):
    victim = next((finished / "checkpoints" / "clients").glob("client-*@00008.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1])
    fedkd.resume(finished)
    assert metrics_of(finished) == metrics_of(unbroken)


def test_resuming_a_finished_run_changes_nothing(finished, unbroken):
    again = fedkd.resume(finished)
    assert metrics_of(finished) == metrics_of(unbroken)
    assert again.summary["final"] == json.loads((unbroken / "summary.json").read_text())["final"]


def test_a_folder_with_a_run_is_not_overwritten(finished, tmp_path):
    with pytest.raises(UserError, match="already holds a run"):
        fedkd.run(load_scenario(write(tmp_path)), out=finished)
    with pytest.raises(UserError, match="not a run folder"):
        fedkd.resume(tmp_path / "elsewhere")


def test_two_processes_cannot_work_in_one_folder(finished):
    from fedkd.tracking.run_folder import lock_run_folder

    with lock_run_folder(finished), pytest.raises(UserError, match="another process"):
        fedkd.resume(finished)


@pytest.mark.parametrize("strategy", ["knfu", "feddf", "flwr:FedAdam"])
def test_an_extended_run_equals_a_longer_one(strategy, tmp_path):
    """Also where it was evaluated only because it ended: of that there is no trace."""
    fusion = TABLES["fusion"] if strategy == "knfu" else {"strategy": strategy}
    changes = {
        "fusion": fusion,
        "evaluate_every": 3,
        "clients": [{"model": "mlp"}],
        "faults": {"dropout": 0.3},
    }
    short, long = (
        fedkd.run(load_scenario(write(tmp_path, **changes, rounds=rounds)), out=tmp_path / str(rounds)).folder
        for rounds in (4, 7)
    )
    assert main(["resume", str(short), "--rounds", "7", "--quiet"]) == 0
    assert metrics_of(short) == metrics_of(long)
    assert (short / "schedule.json").read_bytes() == (long / "schedule.json").read_bytes()
    totals = [json.loads((folder / "summary.json").read_text()) for folder in (short, long)]
    for name in ("bytes_up", "bytes_down"):
        assert totals[0]["final"][name] == totals[1]["final"][name]
    assert totals[0]["rounds"] == totals[1]["rounds"] == 7


def test_a_changed_scenario_is_refused_with_its_key(finished, unbroken, capsys):
    text = (finished / "scenario.toml").read_text()
    (finished / "scenario.toml").write_text(text.replace("lr = 0.01", "lr = 0.02"))
    assert main(["resume", str(finished)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        f"error: {finished / 'scenario.toml'}: the run began with other values: training.lr"
    )
    assert len(said.splitlines()) == 1
    assert main(["resume", str(finished), "--rounds", "3"]) == 2
    assert metrics_of(finished) == metrics_of(unbroken)
