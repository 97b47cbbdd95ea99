"""Ray breaks down under a run: exit status 3, what happened, and how to go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
from processes import program

from fedkd.cli.main import main


def descendants(pid: int) -> dict[int, str]:
    """Return the processes below one, by id, with what they were started with."""
    listed = subprocess.run(["ps", "-wweo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    found, below = {}, {pid}
    while below:
        new = {int(own): words for own, parent, words in rows if int(parent) in below}
        found |= new
        below = set(new)
    return found


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("raylet", marks=pytest.mark.alone),
        pytest.param("gcs_server", marks=pytest.mark.slow),
    ],
)
def test_a_run_reports_a_lost_ray_process_and_can_be_resumed(name, digits_toml, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["run", str(digits_toml), "--out", str(out), "--set", "rounds=500", "engine.kind=ray"]
    words.append("engine.actors=1")
    process = program(words)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if " 2/500 " in line:
                break
        else:
            raise AssertionError(process.communicate()[1])
        # The first: what it has just forked is called the same, for a moment.
        victim = next(pid for pid, words in descendants(process.pid).items() if f"/{name} " in words)
        os.kill(victim, signal.SIGKILL)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 3
    assert error.startswith("error: ") and error.count("\n") == 1
    # The child, or, where Ray was quicker to end that one, its parent.
    assert f"Ray's {name} was killed by SIGKILL; " in error or "the run broke off; Ray ended it" in error
    assert error.endswith(f"the last checkpoint is saved; continue with: fedkd resume {out}\n")

    done = max(json.loads(line)["round"] for line in (out / "metrics.jsonl").read_text().splitlines())
    text = (out / "scenario.toml").read_text().replace('kind = "ray"', 'kind = "inline"')
    (out / "scenario.toml").write_text(text.replace("rounds = 500", f"rounds = {done + 1}"))
    assert main(["resume", str(out), "--quiet"]) == 2, (
        "fewer rounds are refused, so all of the state is there"
    )
    assert "the run began with 500 rounds" in capsys.readouterr().err


@pytest.mark.alone
def test_sigterm_during_the_start_of_ray_exits_with_130_cleanly(digits_toml, tmp_path):
    out = tmp_path / "out"
    process = program(["run", str(digits_toml), "--out", str(out), "--set", "engine.kind=ray"])
    assert process.stdout is not None
    started: dict[int, str] = {}
    try:
        assert process.stdout.readline().startswith("starting Ray")
        while not any("/gcs_server " in words for words in started.values()):
            assert process.poll() is None
            started |= descendants(process.pid)
        process.terminate()
        while process.poll() is None:
            started |= descendants(process.pid)
        error = process.communicate()[1]
    finally:
        process.kill()
    assert process.returncode == 130
    assert error == "error: stopped at once; nothing was written; start the run again\n"
    listed = subprocess.run(
        ["ps", "-o", "pid=,stat=", "-p", ",".join(map(str, started))], capture_output=True, text=True
    )
    assert not [line for line in listed.stdout.splitlines() if "Z" not in line]
    assert not out.exists()
