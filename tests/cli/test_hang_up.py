"""A closed terminal or SIGHUP stops a run like Ctrl-C and saves its state."""

from __future__ import annotations

import json
import os
import pty
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import ray
import tomli_w
from processes import Fork
from stopping import StopInRound

import fedkd
from fedkd.cli.main import main
from fedkd.errors import Interrupted
from fedkd.plan.load import load_plan

pytestmark = pytest.mark.usefixtures("no_report")

LONG = ["rounds=5000", "checkpoint_every=5000"]


class Terminal(NamedTuple):
    """A terminal of a process's own; closing `master` hangs it up."""

    master: int
    path: str

    def close(self) -> None:
        os.close(self.master)


@pytest.fixture
def terminal() -> Terminal:
    master, slave = pty.openpty()
    path = os.ttyname(slave)
    os.close(slave)
    return Terminal(master, path)


@pytest.fixture
def hang_up() -> Iterator[signal.Handlers]:
    """The handler of SIGHUP, which a test may change."""
    former = signal.getsignal(signal.SIGHUP)
    yield former
    signal.signal(signal.SIGHUP, former)


def wait_for(folder: Path, files: str, terminal: Terminal, count: int = 1) -> None:
    """Return when so many files have something in them; keep reading what the terminal shows."""
    deadline = time.monotonic() + 120
    os.set_blocking(terminal.master, False)
    while time.monotonic() < deadline:
        with suppress(OSError):  # nothing there
            os.read(terminal.master, 65536)
        if len([path for path in folder.glob(files) if path.stat().st_size]) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {files} in {folder}")


@pytest.mark.parametrize("error_too", [False, True], ids=["stdout", "stdout and stderr"])
def test_a_run_on_a_closed_terminal_saves_its_state(error_too, digits_toml, tmp_path, terminal):
    out = tmp_path / "out"
    words = ["run", digits_toml, "--out", out, "--set", *LONG]
    process = Fork(words, tmp_path, terminal=terminal.path, error_too=error_too)
    wait_for(out, "metrics.jsonl", terminal)
    terminal.close()
    assert process.wait() == 130
    (saved,) = (out / "checkpoints").glob("round-*")
    done = int(saved.name.removeprefix("round-"))
    if not error_too:
        told = f"stopped after round {done} of 5000; the state is saved; continue with: fedkd resume {out}"
        assert process.stderr == f"error: {told}\n"
    assert {json.loads(line)["round"] for line in (out / "metrics.jsonl").open()} == set(range(1, done + 1))


@pytest.mark.parametrize(
    "parallel", [pytest.param(False, id="in turn"), pytest.param(True, id="on Ray", marks=pytest.mark.slow)]
)
def test_a_bench_on_a_closed_terminal_saves_its_state(parallel, digits_scenario, tmp_path, terminal, request):
    digits_scenario["engine"] = {"cpus_per_actor": 0.5}
    if parallel:  # as one more driver of the cluster that is there
        request.getfixturevalue("ray_session")
        digits_scenario["engine"]["address"] = ray.get_runtime_context().gcs_address
    bench = {"scenario": digits_scenario, "seeds": 2, "parallel": parallel}
    bench["grid"] = {"fusion.strategy": ["local", "knfu"]}
    (tmp_path / "bench.toml").write_text(tomli_w.dumps(bench))
    words = ["bench", tmp_path / "bench.toml", "--out", tmp_path / "out", "--set", *LONG]
    process = Fork(words, tmp_path, terminal=terminal.path)
    wait_for(tmp_path / "out", "runs/*/metrics.jsonl", terminal, count=1 + parallel)
    terminal.close()
    assert process.wait() == 130
    assert process.stderr == "error: stopped with 0/4 done; go on with the same command\n"
    assert len(list(tmp_path.glob("out/runs/*/checkpoints/round-*"))) >= 1 + parallel


@pytest.mark.slow  # starts a Ray of its own, which is in the terminal's process group
def test_ray_processes_outlive_the_terminal(digits_toml, tmp_path, terminal):
    out = tmp_path / "out"
    words = ["run", digits_toml, "--out", out, "--engine", "ray", "--set", *LONG]
    process = Fork(words, tmp_path, terminal=terminal.path)
    wait_for(out, "metrics.jsonl", terminal)
    terminal.close()
    assert process.wait() == 130
    assert process.stderr.startswith("error: stopped after round ") and process.stderr.count("\n") == 1
    assert len(list((out / "checkpoints").glob("round-*"))) == 1


class Twice(StopInRound):
    """Hangs up twice, as a shell does after the kernel."""

    def phase(self, round: int, phase: str, done: int, total: int) -> None:
        super().phase(round, phase, done, total)
        super().phase(round, phase, done, total)


def test_a_second_hang_up_does_not_abort_the_run(digits_toml, tmp_path, hang_up):
    whole = fedkd.run(digits_toml, out=tmp_path / "whole")
    plan = load_plan(digits_toml, ["checkpoint_every=2"])
    with pytest.raises(Interrupted, match="stopped after round 1 of 2; the state is saved"):
        fedkd.run(plan, out=tmp_path / "run", observers=[Twice(1, signal.SIGHUP)])
    signal.signal(signal.SIGHUP, hang_up)
    fedkd.resume(tmp_path / "run")
    name = "metrics.jsonl"
    assert (tmp_path / "run" / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_hang_up_stops_a_resumed_run(digits_toml, tmp_path, hang_up):
    plan = load_plan(digits_toml, ["rounds=3"])
    for done in (1, 2):
        with pytest.raises(Interrupted, match=f"stopped after round {done} of 3.*fedkd resume"):
            stop = StopInRound(done, signal.SIGHUP)
            if done == 1:
                fedkd.run(plan, out=tmp_path / "run", observers=[stop])
            else:
                fedkd.resume(tmp_path / "run", observers=[stop])
        signal.signal(signal.SIGHUP, hang_up)


def test_nohup_makes_a_run_ignore_hang_ups(digits_toml, tmp_path, hang_up):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    result = fedkd.run(digits_toml, out=tmp_path / "run", observers=[StopInRound(1, signal.SIGHUP)])
    assert result.summary["rounds"] == 2
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_hang_up_before_the_first_round_interrupts_the_run(
    number, digits_toml, tmp_path, monkeypatch, capsys, hang_up
):
    monkeypatch.setattr("fedkd.data.load_data", lambda *args, **keys: os.kill(os.getpid(), number))
    terminate = signal.getsignal(signal.SIGTERM)
    assert main(["run", str(digits_toml), "--out", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "error: stopped at once; nothing was written; start the run again\n"
    assert signal.getsignal(signal.SIGTERM) == terminate and not (tmp_path / "run").exists()
