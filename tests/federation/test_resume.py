"""A run that was stopped, at any instant and in any way, ends as if it had not been."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w

import fedkd
from fedkd.errors import Interrupted, UserError
from fedkd.plan.load import load_scenario
from fedkd.tracking.events import RunObserver

FEDKD = [sys.executable, "-m", "fedkd"]


@pytest.fixture
def tables(digits_scenario) -> dict:
    return digits_scenario | {
        "rounds": 8,
        "clients_per_round": 3,
        "clients": [{"model": "mlp"}, {"model": "lenet"}],
        "fusion": {
            "strategy": "knfu",
            "beta": 3.0,
            "stale_decay": 0.7,
            "distribution_momentum": 0.5,
        },
    }


def write(folder: Path, tables: dict) -> Path:
    path = folder / "scenario.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


def kill_and_resume(path: Path, out: Path, engine: str, rounds_done: int, delay: float) -> bytes:
    """Start a run, kill it `delay` seconds after a round's metrics appeared, resume it to the end."""
    process = subprocess.Popen([*FEDKD, "run", str(path), "--out", str(out), "--engine", engine, "--quiet"])
    deadline = time.monotonic() + 120
    metrics = out / "metrics.jsonl"
    marker = f'"round": {rounds_done},'.encode()
    while rounds_done and not (metrics.exists() and marker in metrics.read_bytes()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    while not rounds_done and not (out / "scenario.toml").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*FEDKD, "resume", str(out), "--quiet"], check=True, timeout=180)
    return metrics.read_bytes()


@pytest.mark.parametrize("attempt", range(5))
def test_killed_at_a_random_instant(attempt, tables, tmp_path):
    path = write(tmp_path, tables)
    unbroken = fedkd.run(load_scenario(path), out=tmp_path / "unbroken")
    draw = random.Random(time.time_ns())
    rounds_done, delay = draw.randrange(0, 7), draw.uniform(0.0, 0.3)
    print(f"killed {delay:.4f} s after round {rounds_done}")
    resumed = kill_and_resume(path, tmp_path / "killed", "inline", rounds_done, delay)
    assert resumed == (unbroken.folder / "metrics.jsonl").read_bytes()


def test_killed_on_ray(tables, tmp_path):
    path = write(tmp_path, tables | {"engine": {"kind": "ray", "actors": 2}})
    unbroken = fedkd.run(load_scenario(path, ["engine.kind=inline"]), out=tmp_path / "unbroken")
    resumed = kill_and_resume(path, tmp_path / "killed", "ray", 3, 0.05)
    assert resumed == (unbroken.folder / "metrics.jsonl").read_bytes()


class StopAfter(RunObserver):
    """Sends this process a signal while a round is running."""

    def __init__(self, round: int, signal_number: int) -> None:
        self._round, self._signal = round, signal_number

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        if (round, phase, done) == (self._round, "train", 1):
            os.kill(os.getpid(), self._signal)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("checkpoint_every", [1, 5])
def test_a_signal_saves_after_the_round_and_names_the_way_on(number, checkpoint_every, tables, tmp_path):
    path = write(tmp_path, tables | {"checkpoint_every": checkpoint_every})
    scenario = load_scenario(path)
    unbroken = fedkd.run(scenario, out=tmp_path / "unbroken")
    with pytest.raises(Interrupted, match=rf"after round 3 of 8.*fedkd resume {tmp_path}/stopped") as caught:
        fedkd.run(scenario, out=tmp_path / "stopped", observers=[StopAfter(3, number)])
    assert caught.value.exit_status == 130
    fedkd.resume(tmp_path / "stopped")
    expected = (unbroken.folder / "metrics.jsonl").read_bytes()
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == expected


@pytest.mark.parametrize(
    "fusion",
    [{"strategy": "flwr:FedAdam", "eta": 0.01}, {"strategy": "flwr:FedAvgM", "server_momentum": 0.9}],
)
def test_flowers_strategies_resume_with_their_moments(fusion, tables, tmp_path):
    path = write(tmp_path, tables | {"fusion": fusion, "clients": [{"model": "mlp"}], "checkpoint_every": 2})
    scenario = load_scenario(path)
    unbroken = fedkd.run(scenario, out=tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        fedkd.run(scenario, out=tmp_path / "stopped", observers=[StopAfter(4, signal.SIGINT)])
    fedkd.resume(tmp_path / "stopped")
    expected = (unbroken.folder / "metrics.jsonl").read_bytes()
    assert (tmp_path / "stopped" / "metrics.jsonl").read_bytes() == expected


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tables, tmp_path):
    path = write(tmp_path, tables)
    unbroken = fedkd.run(load_scenario(path), out=tmp_path / "run")
    expected = (unbroken.folder / "metrics.jsonl").read_bytes()
    newest = tmp_path / "run" / "checkpoints" / "round-00008"
    victim = next(newest.glob("client-*.safetensors"))
    data = victim.read_bytes()
    victim.unlink()  # it may be a hard link into the checkpoint before
    victim.write_bytes(data[:-1])
    fedkd.resume(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == expected


def test_resuming_a_finished_run_changes_nothing(tables, tmp_path):
    path = write(tmp_path, tables)
    first = fedkd.run(load_scenario(path), out=tmp_path / "run")
    before = (first.folder / "metrics.jsonl").read_bytes()
    again = fedkd.resume(first.folder)
    assert (first.folder / "metrics.jsonl").read_bytes() == before
    assert again.summary["final"] == first.summary["final"]


def test_a_folder_that_holds_a_run_is_not_overwritten(tables, tmp_path):
    path = write(tmp_path, tables)
    scenario = load_scenario(path, ["rounds=1"])
    fedkd.run(scenario, out=tmp_path / "run")
    with pytest.raises(UserError, match="holds a run already"):
        fedkd.run(scenario, out=tmp_path / "run")
    with pytest.raises(UserError, match="not a run folder"):
        fedkd.resume(tmp_path / "elsewhere")


def test_two_processes_cannot_work_in_one_folder(tables, tmp_path):
    from fedkd.run_folder import locked

    path = write(tmp_path, tables)
    run = fedkd.run(load_scenario(path, ["rounds=1"]), out=tmp_path / "run")
    with locked(run.folder), pytest.raises(UserError, match="another process"):
        fedkd.resume(run.folder)
